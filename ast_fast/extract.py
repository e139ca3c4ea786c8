"""What a trained model makes of a corpus: `python -m ast_fast.extract CHECKPOINT INPUT`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from ast_fast.classifier import (
    Classifier,
    batches_of_one_length,
    digest_of_any,
    load_any_classifier,
)
from ast_fast.data.audio import windows_of
from ast_fast.data.cache import decode_settings
from ast_fast.machine.device import is_out_of_memory, resolve_device
from ast_fast.machine.malloc import keep_freed_memory
from ast_fast.pretrained.located import Checkpoint
from ast_fast_kernels.corpus.command import run_command
from ast_fast_kernels.corpus.extractor import Samples
from ast_fast_kernels.corpus.formats.shard import DtypeName
from ast_fast_kernels.corpus.run import Corpus
from ast_fast_kernels.errors import InputError

PROGRAM = "python -m ast_fast.extract"

What = Literal["embeddings", "probabilities", "logits"]


@dataclass(frozen=True)
class Options(Corpus, Checkpoint):
    """Extract what a trained model makes of audio files, of any number, into shards.

    A file of any length is cut into clips of the model's length, as ast_fast.predict does. Bad
    files are named on standard error, listed in failed.jsonl and left out; the exit code is then 1.
    A run that was interrupted or killed goes on with --resume, to the same bytes.
    """

    dtype: DtypeName = "float32"
    """Type that rows are stored as."""
    what: What = "embeddings"
    """What to extract: embeddings (the vector that the model's head classifies), or the
    probabilities or logits of its classes, whose names are in extract.toml."""
    per_window: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep a row for each clip of a file; without, a file has one row, the mean over its clips."""
    batch_size: int = 32
    """Clips that go through the model at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the model; auto takes CUDA if this machine has it."""


class ModelExtractor:
    """Makes a row of each waveform by a trained model, in windows of the model's length.

    A waveform is cut as `ast_fast.predict` cuts a file. Its row is the mean over its windows, or
    one vector a window. Each process loads the model when it first needs it, and runs it on one
    thread of the CPU, so that results do not depend on the number of processes.

    Args:
        checkpoint: Model of a finished fold, or one that others trained; every process reads it.
        what: `embeddings` (what the head classifies), `probabilities` or `logits`.
        per_window: Whether a row is (num_windows, width); False is their mean, (width,).
        device: Where the model runs.
        batch_size: Windows at once. Sums are rounded in another order where it differs.
        seconds: Length of a window, as in `load_any_classifier`.
    Raises:
        InputError: The checkpoint cannot be used, or the machine lacks the device.
    """

    takes_int16 = True
    is_random = False
    frame_shift: float | None = None

    def __init__(
        self,
        checkpoint: Path,
        what: What,
        *,
        per_window: bool = False,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        batch_size: int = 32,
        seconds: float | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"--batch-size must be at least 1, got {batch_size}")
        self.checkpoint, self.what = checkpoint.absolute(), what
        self.ragged, self.batch_size = per_window, batch_size
        self.device = resolve_device(device).type
        self.needs_gpu = self.device == "cuda"
        self.digest, self.seconds = "", seconds
        classifier = self._load()
        clips = decode_settings(classifier.config)
        self.sample_rate, self.window_size = clips.sample_rate, clips.num_samples
        self.class_names = classifier.class_names
        self.shortest, self.multi_label = classifier.shortest, classifier.multi_label
        self.precision = classifier.placement.precision
        self.width = (
            classifier.config.model.pooled_width if what == "embeddings" else len(self.class_names)
        )

    def settings(self) -> dict[str, Any]:
        """Return the kind of rows, and what of the model they depend on."""
        model = {
            "sha256": self.digest,
            "sample_rate": self.sample_rate,
            "window_seconds": self.window_size / self.sample_rate,
            "class_names": self.class_names,
            "multi_label": self.multi_label,
        }
        return {
            "kind": self.what,
            "torch": torch.__version__,
            "per_window": self.ragged,
            "batch_size": self.batch_size,
            "device": self.device,
            "precision": self.precision,
            "model": model,
        }

    def __getstate__(self) -> dict[str, Any]:
        """Leave the model out: another process loads its own."""
        return {**vars(self), "_classifier": None}

    def __call__(self, waveforms: Sequence[NDArray[Samples]]) -> list[NDArray[np.float32]]:
        """Return the row of each waveform, (width,) or (num_windows, width)."""
        if not waveforms:
            return []
        size, shortest = self.window_size, self.shortest
        windows = [list(windows_of([one], size, shortest)) for one in waveforms]
        vectors = self._vectors([window for of_one in windows for window in of_one])
        ends = np.cumsum([len(of_one) for of_one in windows])
        rows = np.split(vectors, ends[:-1])
        if self.ragged:
            return rows
        return [row.mean(axis=0, dtype=np.float64).astype(np.float32) for row in rows]

    def _vectors(self, windows: Sequence[NDArray[np.int16]]) -> NDArray[np.float32]:
        """Return the vector of each window, (num_windows, width); each length has its batches."""
        compute = getattr(self._loaded(), self.what)
        vectors = np.empty((len(windows), self.width), np.float32)
        try:
            for rows, same in batches_of_one_length(windows):
                batches = torch.split(same, self.batch_size)
                vectors[rows] = torch.cat([compute(batch) for batch in batches]).numpy()
        except ValueError as error:
            raise InputError(
                f"CHECKPOINT's settings give no features of a clip: {error}"
            ) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InputError("out of memory: lower --batch-size or --jobs") from error
        return vectors

    def _loaded(self) -> Classifier:
        return self._classifier or self._load()

    def _load(self) -> Classifier:
        """Load the model into this process, the very file that the run began with."""
        device = resolve_device("cuda" if self.device == "cuda" else "cpu")
        needs = self.what != "embeddings"
        torch.set_num_threads(1)  # before the model is packed, which each process does
        keep_freed_memory()
        before = digest_of_any(self.checkpoint)
        classifier = load_any_classifier(
            self.checkpoint, device, needs_classes=needs, seconds=self.seconds
        ).ready()
        digest = digest_of_any(self.checkpoint)
        if before != digest or self.digest not in ("", digest):
            raise InputError(
                f"CHECKPOINT {self.checkpoint} must stay as it was when the run began, and differs"
            )
        self._classifier, self.digest = classifier, digest
        return classifier


def main(argv: Sequence[str] | None = None) -> int:
    """Extract what the arguments ask for; return the exit code, as `run_command` says."""
    return run_command(Options, PROGRAM, argv, _extractor)


def _extractor(options: Options) -> ModelExtractor:
    return ModelExtractor(
        options.located(),
        options.what,
        per_window=options.per_window,
        device=options.device,
        batch_size=options.batch_size,
        seconds=options.seconds,
    )


if __name__ == "__main__":
    sys.exit(main())
