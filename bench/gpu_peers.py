"""What other libraries that run on a GPU are compared with, if they are installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
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


def flex_attention(device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return torch's FlexAttention of packed projections, compiled where there is a GPU."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    run = torch.compile(flex, dynamic=False) if device.type == "cuda" else flex

    def attend(qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, head_dim) each
        return run(q, k, v).transpose(1, 2)

    return attend


def layer_norm_peers() -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """Return liger-kernel's layer norm, if it is installed, of a residual stream and an update."""
    if find_spec("liger_kernel") is None:
        return {}
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    def normalise(
        tokens: Tensor, update: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = tokens + update
        return total, LigerLayerNormFunction.apply(total, weight, bias, 1e-5)

    return {"liger-kernel": normalise}
