"""Run torchaudio for torchaudio_client.py: read orders on stdin, write answers to stdout, as JSON.

torchaudio needs another version of torch than this project, so another interpreter runs this file.
Between turns it waits in a blocking read.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torchaudio

from ast_fast.machine.malloc import keep_freed_memory
from bench.turns import settle

Run = Callable[[torch.Tensor], Any]
"""Returns the features of a batch (clips, num_samples), or a list of each clip's."""


AST = {
    "htk_compat": True, "sample_frequency": 16000, "use_energy": False, "window_type": "hanning",
    "num_mel_bins": 128, "dither": 0.0, "frame_shift": 10,
}  # fmt: skip
"""Options of fbank as AST calls it. Source: YuanGongND/ast, src/dataloader.py."""


def kaldi_fbank(clip: torch.Tensor, **options: Any) -> torch.Tensor:
    return torchaudio.compliance.kaldi.fbank(clip[None], **(options or AST))


def of_kaldi(function: str, clip: torch.Tensor, **options: Any) -> torch.Tensor:
    features: torch.Tensor = getattr(torchaudio.compliance.kaldi, function)(clip[None], **options)
    return features


def with_gradient(run: Run) -> Run:
    """Return a run that gives the gradient of half the sum of its features' squares."""

    def backward(waveforms: torch.Tensor) -> torch.Tensor:
        leaf = waveforms.detach().requires_grad_()
        features = run(leaf)
        return torch.autograd.grad(features, leaf, features.detach())[0]

    return backward


def find_run(
    name: str, how: str, python_threads: int, *, gradient: bool = False, **options: Any
) -> Run:
    """Return a way to run a batch: whole, or clip by clip in `python_threads` Python threads.

    Args:
        name: `kaldi.fbank`, another function as `kaldi.mfcc`, `MelSpectrogram` or
            `speechbrain.Fbank`.
        how: `whole` or `clip by clip`.
        python_threads: Threads that share the clips.
        gradient: Whether to run backward too, for the waveform's gradient.
        options: Those of torchaudio's function; none are AST's, or the defaults.
    """
    if name == "kaldi.fbank":
        one: Run = partial(kaldi_fbank, **options)
    elif name == "speechbrain.Fbank":
        from speechbrain.lobes.features import Fbank

        module = Fbank(**options)

        def one(waveforms: torch.Tensor) -> torch.Tensor:
            return module(waveforms) if waveforms.dim() == 2 else module(waveforms[None])[0]
    elif name.startswith("kaldi."):
        one = partial(of_kaldi, name.removeprefix("kaldi."), **options)
    else:
        mel_spectrogram = torchaudio.transforms.MelSpectrogram(**options)

        def one(waveforms: torch.Tensor) -> torch.Tensor:
            return mel_spectrogram(waveforms).mT

    if gradient:
        one = with_gradient(one)
    if how == "whole":
        return one
    if python_threads == 1:
        return lambda batch: [one(clip) for clip in batch]
    pool = ThreadPoolExecutor(python_threads)
    return lambda batch: list(pool.map(one, batch))


class Server:
    """Answers orders; each method is one."""

    def __init__(self) -> None:
        self.run: Run
        self.inputs: list[torch.Tensor]

    def versions(self) -> dict[str, str]:
        return {"torch": torch.__version__, "torchaudio": torchaudio.__version__}

    def load(
        self,
        name: str,
        how: str,
        threads: int,
        python_threads: int,
        inputs: str,
        options: dict[str, Any],
    ) -> None:
        """Load the clips (inputs, batch, num_samples) of an .npy file, and set how to run them."""
        torch.set_num_threads(threads)
        self.run = find_run(name, how, python_threads, **options)
        self.inputs = list(torch.from_numpy(np.load(inputs)))

    def features(self, path: str) -> None:
        """Write every input's features to an .npy file, (clips, num_frames, num_mel_bins).

        Dither is drawn from torch's generator with seed 0.
        """
        torch.manual_seed(0)
        batches = [list(self.run(batch)) for batch in self.inputs]
        np.save(path, torch.stack([clip for batch in batches for clip in batch]).numpy())

    def turn(self) -> float:
        """Run every input once and return the seconds."""
        begin = time.perf_counter()
        for batch in self.inputs:
            self.run(batch)
        return time.perf_counter() - begin

    def settle(self) -> None:
        settle()


def main() -> None:
    keep_freed_memory()
    server = Server()
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        answer = getattr(server, order.pop("order"))(**order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
