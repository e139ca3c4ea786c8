"""Checks of the filterbank that arrays and tensors share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from ast_fast_kernels import _dispatch
from ast_fast_kernels.fbank.config import FbankConfig

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

Lengths: TypeAlias = "int | Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor"


def check_config(config: object) -> None:
    """Raise unless it is an FbankConfig."""
    if isinstance(config, FbankConfig):
        return
    kind = type(config)
    if kind.__name__ != "FbankConfig":
        raise TypeError(f"config must be an FbankConfig, got {kind.__name__}")
    advice = ""
    if any(base.__module__.partition(".")[0] == "lhotse" for base in kind.__mro__):
        advice = "; ast_fast_kernels.compat.lhotse.Fbank takes it"
    raise TypeError(
        f"config must be an ast_fast_kernels.FbankConfig, got {kind.__module__}.FbankConfig{advice}"
    )


def check_length(shape: Sequence[int], config: FbankConfig) -> None:
    """Raise if a waveform of this shape is shorter than one frame and nothing pads it."""
    least = config.window_size if config.snip_edges and not config.pad_tail else 0
    if not shape or shape[-1] < least:
        raise ValueError(
            f"waveform must be (..., num_samples) with num_samples >= {least} "
            f"(frame_length {config.frame_length:g} ms at {config.sample_frequency:g} Hz), "
            f"got {tuple(shape)}"
        )


def settled_backend(requested: str, kernels: str, obstacle: str | None) -> str:
    """Return the backend that runs, if `kernels` or auto was asked for.

    Does not use `choose_kernel`: its closures would slow down the call for a short clip.

    Args:
        requested: `"auto"`, or the name of the kernels.
        kernels: Those that auto takes.
        obstacle: Why they cannot run this input; None when they can.
    Raises:
        RuntimeError: They were asked for by name and cannot run.
    """
    if requested == "auto":
        chosen = kernels if obstacle is None else "reference"
        _dispatch.log_choice("fbank", chosen, obstacle)
        return chosen
    if obstacle is not None:
        raise RuntimeError(f'{obstacle}; use backend="reference"')
    return requested


def numba_obstacle(config: FbankConfig) -> str | None:
    """Say why Numba cannot run a config here; None when it can."""
    return _dispatch.numba_obstacle() or _unsupported(config)


@lru_cache(maxsize=64)
def _unsupported(config: FbankConfig) -> str | None:
    from ast_fast_kernels.fbank.numba_cpu import unsupported  # late: it loads Numba

    return unsupported(config)
