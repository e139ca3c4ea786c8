"""Other libraries' filterbanks, each called so that it computes one of our presets.

If a peer can be called in several ways (a batch at once, clip by clip, in Python threads), all are
tried, and the fastest counts. Each is compared with ours in the peer's own convention.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.config import FLOAT32_EPS
from bench import torchaudio_client
from bench.turns import Way

Inputs = list[np.ndarray]
"""The batches of one turn, each (clips, num_samples): one of 64 clips, or many of one clip."""

Run = Callable[[np.ndarray], Any]
"""Returns a batch's features: (clips, num_frames, num_mel_bins), or a list of each clip's."""

AST = FbankConfig()


def local(run: Run, inputs: Inputs, threads: int) -> Way:
    """Return the way that calls `run` in this process."""

    def turn() -> None:
        for batch in inputs:
            run(batch)

    return Way(turn, lambda: np.concatenate([np.asarray(run(batch)) for batch in inputs]), threads)


def ours(config: FbankConfig, inputs: Inputs, threads: int) -> Way:
    return local(partial(fbank, config=config, backend="numba"), inputs, threads)


def whole_batch(run: Run, inputs: Inputs, threads: int) -> dict[str, Way]:
    return {"whole batch": local(run, inputs, threads)}


def clip_by_clip(one: Run, inputs: Inputs, threads: int) -> dict[str, Way]:
    """Return a loop over clips; with several threads and clips, also one in a pool of threads."""
    found = {"clip by clip": local(lambda batch: [one(clip) for clip in batch], inputs, threads)}
    if threads > 1 and len(inputs[0]) > 1:
        pool = ThreadPoolExecutor(threads)  # its own: torch counts threads for each thread
        name = f"clip by clip in {threads} Python threads"
        found[name] = local(lambda batch: list(pool.map(one, batch)), inputs, 1)
    return found


def reference_batched(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    return whole_batch(partial(fbank, config=AST, backend="reference"), inputs, threads)


def reference_clip_by_clip(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    return clip_by_clip(partial(fbank, config=AST, backend="reference"), inputs, threads)


class TorchFbank(torch.nn.Module):
    """AST's recipe as a user would write it in torch: batched, with its tables in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor(tables.window(AST), dtype=torch.float32))
        banks = torch.tensor(tables.mel_banks(AST).T, dtype=torch.float32)
        self.register_buffer("mel_banks", banks.contiguous())

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        frames = waveforms.unfold(-1, AST.window_size, AST.window_shift)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        previous = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
        frames = (frames - AST.preemphasis_coefficient * previous) * self.window
        spectrum = torch.fft.rfft(frames, n=AST.fft_size)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ self.mel_banks).clamp(min=FLOAT32_EPS).log()


@torch.inference_mode()
def run_torch(module: Callable[[torch.Tensor], torch.Tensor], batch: np.ndarray) -> torch.Tensor:
    return module(torch.from_numpy(batch))


def torch_eager(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    return whole_batch(partial(run_torch, TorchFbank()), inputs, threads)


@cache
def compiled_fbank() -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.compile(TorchFbank(), dynamic=False)


def torch_compile(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed, which torch.compile needs on a CPU")
    return whole_batch(partial(run_torch, compiled_fbank()), inputs, threads)


def transformers_ast(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    """Call ASTFeatureExtractor; without torchaudio it takes its numpy path, a loop over frames."""
    from transformers import ASTFeatureExtractor

    num_frames = AST.num_frames(inputs[0].shape[1])
    extractor = ASTFeatureExtractor(max_length=num_frames, do_normalize=False)

    def one(clip: np.ndarray) -> np.ndarray:
        return extractor(clip, sampling_rate=16000, return_tensors="np")["input_values"][0]

    return clip_by_clip(one, inputs, threads)


def transformers_whisper(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    """Call WhisperFeatureExtractor without padding to 30 s; it uses torch if installed."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()

    def run(batch: np.ndarray) -> np.ndarray:
        features = extractor(
            list(batch), sampling_rate=16000, padding="longest", return_tensors="np"
        )
        return features["input_features"].transpose(0, 2, 1)

    return {
        **whole_batch(run, inputs, threads),
        **clip_by_clip(lambda clip: run(clip[None])[0], inputs, threads),
    }


def asrfront(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    """Call asrfront's Kaldi fbank: its front end for SenseVoice without stacking frames."""
    from asrfront import sensevoice

    def run(batch: np.ndarray) -> np.ndarray:
        return sensevoice.fbank_batch(batch, n_mels=128, lfr_m=1, lfr_n=1, n_threads=threads)[0]

    found = clip_by_clip(partial(sensevoice.fbank_raw, n_mels=128), inputs, threads)
    found["fbank_batch with n_threads"] = local(run, inputs, threads)
    return found


def asrfront_whisper(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    from asrfront import whisper

    def run(batch: np.ndarray) -> np.ndarray:
        many = whisper.log_mel_batch(batch, pad_or_trim=False, n_threads=threads)
        return np.stack([one.T for one in many])

    found = clip_by_clip(lambda clip: whisper.log_mel(clip, pad_or_trim=False).T, inputs, threads)
    found["log_mel_batch with n_threads"] = local(run, inputs, threads)
    return found


def librosa(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    """Call librosa clip by clip, because `power_to_db` takes its maximum over the whole array."""
    from librosa import power_to_db
    from librosa.feature import melspectrogram

    return clip_by_clip(lambda clip: power_to_db(melspectrogram(y=clip)).T, inputs, threads)


def python_speech_features(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    from python_speech_features import logfbank

    return clip_by_clip(logfbank, inputs, threads)


def kaldi_native_fbank(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80  # it refuses 128, because one filter is empty

    def one(clip: np.ndarray) -> np.ndarray:
        computer = knf.OnlineFbank(options)
        computer.accept_waveform(16000.0, clip.tolist())  # a list is read faster than an array
        computer.input_finished()
        return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])

    return clip_by_clip(one, inputs, threads)


def lhotse(inputs: Inputs, threads: int, folder: Path) -> dict[str, Way]:
    from lhotse import Fbank

    extractor = Fbank()

    def run(batch: np.ndarray) -> np.ndarray:
        features = extractor.extract_batch(batch, 16000)
        return features if features.ndim == 3 else features[None]  # it unpacks a batch of one

    return {
        **whole_batch(run, inputs, threads),
        **clip_by_clip(lambda clip: extractor.extract(clip, 16000), inputs, threads),
    }


@dataclass(frozen=True)
class Peer:
    """A library's function, and our preset that does the same."""

    preset: str
    ways: Callable[[Inputs, int, Path], dict[str, Way]]
    """Loads the library; returns the ways to call it, by name, for inputs and threads."""
    package: str | None = None
    """The package that it needs, by its name on PyPI."""
    changes: Mapping[str, object] = field(default_factory=dict)
    """Fields of the preset that the call changes."""
    int16_changes: Mapping[str, object] | None = None
    """The same for int16 inputs, in addition; None: it does not take int16."""

    def config(self, dtype: str) -> FbankConfig:
        """Return our config that does the same on inputs of a dtype."""
        more = self.int16_changes if dtype == "int16" else None
        return FbankConfig.preset(self.preset, **{**self.changes, **(more or {})})  # type: ignore[arg-type]


SENSEVOICE = {"window_type": "hamming", "waveform_scale": 32768.0}

PEERS = {
    "reference-batched": Peer("ast", reference_batched, int16_changes={}),
    "reference-clip-by-clip": Peer("ast", reference_clip_by_clip, int16_changes={}),
    "torch-eager": Peer("ast", torch_eager),
    "torch-compile": Peer("ast", torch_compile),
    "asrfront": Peer("ast", asrfront, "asrfront", changes=SENSEVOICE, int16_changes={}),
    "torchaudio-kaldi.fbank": Peer("ast", partial(torchaudio_client.ways, "kaldi.fbank")),
    "transformers-ASTFeatureExtractor": Peer("ast", transformers_ast, "transformers"),
    "kaldi-native-fbank": Peer(
        "kaldi", kaldi_native_fbank, "kaldi-native-fbank", changes={"num_mel_bins": 80}
    ),
    "lhotse-Fbank": Peer("lhotse", lhotse, "lhotse"),
    "librosa": Peer("librosa", librosa, "librosa"),
    "torchaudio-MelSpectrogram": Peer(
        "melspectrogram", partial(torchaudio_client.ways, "MelSpectrogram")
    ),
    "python_speech_features": Peer(
        "python_speech_features",
        python_speech_features,
        "python_speech_features",
        int16_changes={"waveform_scale": 32768.0},  # it takes samples as they come
    ),
    "transformers-WhisperFeatureExtractor": Peer("whisper", transformers_whisper, "transformers"),
    "asrfront-whisper": Peer("whisper", asrfront_whisper, "asrfront", int16_changes={}),
}


def require(peer: Peer) -> None:
    """Skip if the peer's package is not installed."""
    if peer.package and importlib.util.find_spec(peer.package.replace("-", "_")) is None:
        pytest.skip(f"{peer.package} is not installed: pip install -e '.[bench]'")
