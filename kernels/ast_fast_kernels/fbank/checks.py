"""Checks of the filterbank that arrays and tensors share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from ast_fast_kernels.fbank.config import FbankConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

Lengths: TypeAlias = "int | Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor"


def check_config(config: object) -> None:
    """Raise unless it is an FbankConfig."""
    if not isinstance(config, FbankConfig):
        raise TypeError(f"config must be an FbankConfig, got {type(config).__name__}")


def check_length(shape: Sequence[int], config: FbankConfig) -> None:
    """Raise if a waveform of this shape is shorter than one frame and nothing pads it."""
    least = config.window_size if config.snip_edges and not config.pad_tail else 0
    if not shape or shape[-1] < least:
        raise ValueError(
            f"waveform must be (..., num_samples) with num_samples >= {least} "
            f"(frame_length {config.frame_length:g} ms at {config.sample_frequency:g} Hz), "
            f"got {tuple(shape)}"
        )
