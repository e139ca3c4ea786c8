"""The filterbank as a torch module."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ast_fast_kernels.fbank.api import fbank
from ast_fast_kernels.fbank.config import FbankConfig

if TYPE_CHECKING:
    from ast_fast_kernels.fbank.checks import Lengths

_AST = FbankConfig()


class Fbank(nn.Module):
    """`fbank` as a module, without parameters or state; runs on its input's device.

    Args:
        config: The conventions; the default is the Audio Spectrogram Transformer's.
        backend: As in `fbank`.
    """

    def __init__(self, config: FbankConfig = _AST, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config
        self.backend = backend

    def forward(self, waveform: Tensor, lengths: Lengths | None = None) -> Tensor:
        """Return the energies, (..., num_frames, num_mel_bins), of samples (..., num_samples)."""
        return fbank(waveform, self.config, lengths=lengths, backend=self.backend)

    def extra_repr(self) -> str:
        """Show what differs from the default config, and the backend."""
        changed = [
            f"{field.name}={value!r}"
            for field in fields(self.config)
            if (value := getattr(self.config, field.name)) != field.default
        ]
        return ", ".join([*changed, f"backend={self.backend!r}"])
