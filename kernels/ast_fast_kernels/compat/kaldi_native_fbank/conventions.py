"""The library's options as `FbankConfig`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ast_fast_kernels.compat.kaldi_native_fbank.options import (
    FrameExtractionOptions,
    MelBanksOptions,
)
from ast_fast_kernels.fbank.config import FbankConfig


def check_kind(options: object, kind: type, argument: str = "opts") -> None:
    """Raise unless options are of a kind."""
    if not isinstance(options, kind):
        raise TypeError(f"{argument} must be {kind.__name__}, got {type(options).__name__}")


_WINDOWS = ("hanning", "hann", "hamming", "povey", "rectangular", "blackman")


def config_of(
    frame: FrameExtractionOptions, mel: MelBanksOptions, **changes: object
) -> FbankConfig:
    """Return the conventions that options describe."""
    if frame.window_type not in _WINDOWS:
        rule = f"one of {', '.join(_WINDOWS)}"
        raise ValueError(f"window_type must be {rule}, got {frame.window_type!r}")
    for name in ("debug_mel", "htk_mode"):
        if getattr(mel, name):
            raise ValueError(f"{name} must be False, got True")
    size, shift = (
        int(np.float32(frame.samp_freq) * np.float32(0.001) * np.float32(milliseconds))
        for milliseconds in (frame.frame_length_ms, frame.frame_shift_ms)
    )
    periodic = frame.window_type == "hann"
    return _made(
        sample_frequency=frame.samp_freq,
        window_size=size,
        window_shift=shift,
        n_fft=None if frame.round_to_power_of_two else size,
        window_type="hanning" if periodic else frame.window_type,
        window_periodic=periodic,
        blackman_coeff=frame.blackman_coeff,
        dither=abs(frame.dither),
        preemphasis_coefficient=frame.preemph_coeff,
        snip_edges=frame.snip_edges,
        remove_dc_offset=frame.remove_dc_offset,
        num_mel_bins=mel.num_bins,
        low_freq=mel.low_freq,
        high_freq=mel.high_freq,
        **(_librosa(mel) if mel.is_librosa else {}),
        **changes,
    )


@lru_cache(maxsize=64)
def _made(**fields: Any) -> FbankConfig:
    """Return one config for equal fields: making it takes as long as a clip's features."""
    return FbankConfig.from_samples(**fields)


@lru_cache(maxsize=64)
def with_whole_frames(config: FbankConfig) -> FbankConfig:
    """Return the config without padding, one for equal ones."""
    return config.replace(snip_edges=True)


def _librosa(mel: MelBanksOptions) -> dict[str, object]:
    """Return the fields of filters in librosa's manner."""
    if mel.norm not in ("", "slaney"):
        raise ValueError(f"norm must be '' or 'slaney', got {mel.norm!r}")
    if mel.floor_to_int_bin and mel.norm:
        raise ValueError(f"norm must be '' when floor_to_int_bin is True, got {mel.norm!r}")
    return {
        "mel_scale": "slaney" if mel.use_slaney_mel_scale else "htk",
        "mel_norm": "slaney" if mel.norm else "none",
        "triangle_axis": "bins" if mel.floor_to_int_bin else "hertz",
    }
