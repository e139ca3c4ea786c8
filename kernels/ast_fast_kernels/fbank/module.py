"""The filterbank as a torch module."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ast_fast_kernels.fbank.api import fbank
from ast_fast_kernels.fbank.checks import check_config
from ast_fast_kernels.fbank.config import FbankConfig

if TYPE_CHECKING:
    from ast_fast_kernels.fbank.checks import Lengths

_AST = FbankConfig()

_LHOTSES = frozenset(
    (
        "extract",
        "extract_batch",
        "extract_from_recording_and_store",
        "extract_from_samples_and_store",
        "feature_dim",
        "frame_shift",
        "to_dict",
        "to_yaml",
    )
)
"""What lhotse asks of an extractor."""


class Fbank(nn.Module):
    """`fbank` as a module, without parameters or state; runs on its input's device.

    Args:
        config: The conventions; the default is the Audio Spectrogram Transformer's.
        backend: As in `fbank`.
    Raises:
        TypeError: `config` is not an FbankConfig.
    """

    def __init__(self, config: FbankConfig = _AST, *, backend: str = "auto") -> None:
        super().__init__()
        check_config(config)
        self.config = config
        self.backend = backend

    def forward(self, waveform: Tensor, lengths: Lengths | None = None) -> Tensor:
        """Return the energies, (..., num_frames, num_mel_bins), of samples (..., num_samples)."""
        return fbank(waveform, self.config, lengths=lengths, backend=self.backend)

    def __getattr__(self, name: str) -> Any:
        """Say what to use instead when lhotse takes this module for an extractor."""
        if name in _LHOTSES:
            words = "ast_fast_kernels.Fbank is a torch module and no extractor of lhotse's; use "
            words += "ast_fast_kernels.compat.lhotse.Fbank, which takes the same config"
            raise AttributeError(words)
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """Show what differs from the default config, and the backend."""
        changed = [
            f"{field.name}={value!r}"
            for field in fields(self.config)
            if (value := getattr(self.config, field.name)) != field.default
        ]
        return ", ".join([*changed, f"backend={self.backend!r}"])
