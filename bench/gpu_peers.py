"""Filterbanks of other libraries that run on a GPU, if they are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from torch import Tensor


def fbank_peers(waveform: Tensor) -> dict[str, Callable[[], object]]:
    """Return a call of each installed library on a batch, in the library's own convention."""
    peers: dict[str, Callable[[], object]] = {}
    if find_spec("torchaudio") is not None:
        from torchaudio.compliance import kaldi
        from torchaudio.transforms import MelSpectrogram

        scaled = waveform * 32768
        spectrogram = MelSpectrogram(16000, 512, 400, 160, n_mels=128).to(waveform.device)
        peers["torchaudio kaldi.fbank, clip by clip"] = lambda: [
            kaldi.fbank(clip[None], num_mel_bins=128, window_type="hanning") for clip in scaled
        ]
        peers["torchaudio MelSpectrogram"] = lambda: spectrogram(waveform)
    if find_spec("flashmel") is not None:
        from flashmel import MelSpectrogram as FlashMelSpectrogram

        fused = FlashMelSpectrogram(
            sample_rate=16000, n_fft=512, win_length=400, hop_length=160, n_mels=128
        )
        peers["flashmel MelSpectrogram"] = lambda: fused(waveform)
    return peers
