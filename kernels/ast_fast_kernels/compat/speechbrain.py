"""speechbrain's `lobes.features.Fbank` with the same arguments: only its name in a recipe changes.

speechbrain itself is not needed, nor is torchaudio.
"""

from __future__ import annotations

from typing import Any, Literal

from ast_fast_kernels._torch.optional import needs_torch

try:
    import torch
    from torch import Tensor, nn
except ModuleNotFoundError as error:
    raise needs_torch("ast_fast_kernels.compat.speechbrain") from error

from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels.fbank.api import fbank
from ast_fast_kernels.fbank.config import FbankConfig, FilterShape

__all__ = ["Fbank"]

Shape = Literal["triangular", "rectangular", "gaussian"]

_SHAPES: dict[str, FilterShape] = {
    "triangular": "symmetric",
    "rectangular": "rectangular",
    "gaussian": "gaussian",
}
"""speechbrain's name of a filter's shape → ours."""


class Fbank(nn.Module):
    """Compute speechbrain's filterbank in decibels, with derivatives and context if asked for.

    Gradients reach the waveform. Filters are fixed: `requires_grad` and `param_rand_factor`, which
    change them in training, are refused. So is what speechbrain computes of mistaken arguments: a
    shape of filter that it does not name, frequencies above Nyquist, several channels.

    Args:
        deltas: Whether first and second derivatives are appended.
        context: Whether each frame is joined by its neighbours.
        requires_grad: False; ours are not learned.
        sample_rate: Sample rate, in Hz.
        f_min: Lower edge of the filters, in Hz.
        f_max: Upper edge, in Hz; None is half the sample rate, rounded down.
        n_fft: FFT length, even, in samples; at least the window's.
        n_mels: Number of filters.
        filter_shape: `"triangular"`, `"rectangular"` or `"gaussian"`.
        param_change_factor: Of learned filters; ignored, as there.
        param_rand_factor: 0; ours do not vary.
        left_frames: Frames of context before each.
        right_frames: Frames of context after it.
        win_length: Length of the window, in milliseconds.
        hop_length: Hop between frames, in milliseconds.
        backend: As in `ast_fast_kernels.fbank`; speechbrain's has no such argument.
    Raises:
        ValueError: An argument is out of range, or asks for filters that change.
    Source: speechbrain 1.1.2, lobes/features.py, Fbank; processing/features.py.
    """

    def __init__(
        self,
        deltas: bool = False,
        context: bool = False,
        requires_grad: bool = False,
        sample_rate: int = 16000,
        f_min: float = 0,
        f_max: float | None = None,
        n_fft: int = 400,
        n_mels: int = 40,
        filter_shape: Shape = "triangular",
        param_change_factor: float = 1.0,
        param_rand_factor: float = 0.0,
        left_frames: int = 5,
        right_frames: int = 5,
        win_length: float = 25,
        hop_length: float = 10,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if requires_grad:
            raise _needs_fixed_filters("requires_grad", False, requires_grad)
        if param_rand_factor != 0:
            raise _needs_fixed_filters("param_rand_factor", 0, param_rand_factor)
        if filter_shape not in _SHAPES:
            raise ValueError(
                f"filter_shape must be one of {', '.join(_SHAPES)}, got {filter_shape!r}"
            )
        nyquist = sample_rate // 2
        f_max = nyquist if f_max is None else f_max
        if not 0 <= f_min < f_max <= nyquist:
            raise ValueError(
                f"f_min and f_max must be from 0 to half of sample_rate ({nyquist} Hz), in this "
                f"order, got {f_min} and {f_max}"
            )
        for name, value in (("left_frames", left_frames), ("right_frames", right_frames)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.deltas, self.context, self.requires_grad = deltas, context, requires_grad
        self.config = FbankConfig.preset(
            "speechbrain",
            sample_frequency=sample_rate,
            window_size=round(sample_rate / 1000.0 * win_length),
            window_shift=round(sample_rate / 1000.0 * hop_length),
            n_fft=n_fft,
            num_mel_bins=n_mels,
            low_freq=f_min,
            high_freq=f_max,
            filter_shape=_SHAPES[filter_shape],
        )
        self.backend = backend
        self.compute_deltas = Deltas(n_mels)
        self.left_frames, self.right_frames = left_frames, right_frames

    def forward(self, wav: Tensor) -> Tensor:
        """Return features, (batch, num_frames, features), of samples, (batch, num_samples).

        A frame has `n_mels` features, three times as many with `deltas`, and `left_frames + 1 +
        right_frames` times as many with `context`, which puts each feature's neighbours in time
        side by side. Half precision is computed in float32.

        Raises:
            TypeError: As in `ast_fast_kernels.fbank`.
            ValueError: `wav` has another shape. speechbrain takes (batch, num_samples, channels)
                too, and adds up the channels' spectra as if they were one's real and imaginary
                parts.
        """
        if not isinstance(wav, Tensor):
            raise TypeError(f"wav must be a tensor, got {type(wav).__name__}")
        if wav.dim() != 2:
            raise ValueError(
                "wav must be (batch, num_samples), with channels as rows of the batch, got "
                f"{tuple(wav.shape)}"
            )
        if wav.dtype in (torch.float16, torch.bfloat16):
            with one_thread_if_forked():
                wav = wav.float()
        return self._expanded(fbank(wav, self.config, backend=self.backend))

    def _expanded(self, features: Tensor) -> Tensor:
        with one_thread_if_forked():
            if self.deltas:
                first = self.compute_deltas(features)
                features = torch.cat((features, first, self.compute_deltas(first)), dim=-1)
            if self.context:
                features = _with_context(features, self.left_frames, self.right_frames)
        return features

    def get_filter_properties(self) -> Any:
        """Return speechbrain's `FilterProperties` of the frames; needs speechbrain."""
        from speechbrain.utils.filter_analysis import FilterProperties

        config = self.config
        return FilterProperties(window_size=config.window_size, stride=config.window_shift)


def _needs_fixed_filters(name: str, needed: object, value: object) -> ValueError:
    return ValueError(
        f"{name} must be {needed}, because the filters here are fixed, got {value}; use "
        "speechbrain.lobes.features.Fbank"
    )


class Deltas(nn.Module):
    """Slopes of a line fitted to five frames; those at a clip's ends are repeated beyond it.

    The buffer is not used: checkpoints of speechbrain's models have it.
    """

    kernel: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.arange(-2.0, 3.0).repeat(num_features, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the derivatives in time of features, (..., num_frames, num_features)."""
        first, last = features[..., :1, :], features[..., -1:, :]
        x = torch.cat((first, first, features, last, last), dim=-2)
        far, near = x[..., 4:, :] - x[..., :-4, :], x[..., 3:-1, :] - x[..., 1:-3, :]
        return (2.0 * far + near) / 10.0


def _with_context(features: Tensor, left: int, right: int) -> Tensor:
    """Join each frame's features by those of its neighbours; 0 beyond a clip's ends."""
    padded = nn.functional.pad(features, (0, 0, left, right))
    return padded.unfold(-2, left + 1 + right, 1).flatten(-2)
