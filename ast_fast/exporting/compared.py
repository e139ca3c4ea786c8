"""Logits of an exported file beside those of our own model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ast_fast.classifier import Classifier
from ast_fast.exporting.graph import INPUT, OUTPUT, WaveformModel
from ast_fast_kernels.errors import InputError

BATCHES = (1, 2, 3)
"""Clips of each batch that is compared."""


@dataclass(frozen=True)
class Difference:
    """How far a file's logits are from our own model's in float32."""

    absolute: float
    """Largest difference."""
    relative: float
    """The same, as a share of the largest logit."""
    same_class: int
    """Clips with the same most probable class."""
    clips: int
    """Clips compared."""


def sounds(sample_rate: int, num_samples: int) -> NDArray[np.float32]:
    """Return clips to compare by, (6, num_samples): noises and falling tones, loud and quiet.

    The second half of one is digital zero, as the end of a padded clip.
    """
    rng = np.random.default_rng(0)
    shape = (sum(BATCHES), num_samples)
    seconds = np.arange(num_samples) / sample_rate
    clips = rng.standard_normal(shape) * 10.0 ** -np.arange(1.0, 4.0, 0.5)[:, None]
    for clip, pitch in zip(clips[1::2], (220.0, 880.0, 2500.0), strict=True):
        since = seconds % 0.5  # a stroke each half second
        clip += 0.5 * np.exp(-8 * since) * np.sin(2 * np.pi * pitch * since)
    clips[2, num_samples // 2 :] = 0
    return np.clip(clips, -1, 1).astype(np.float32)


def logits_of_model(classifier: Classifier, clips: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return our own logits in float32, (num_clips, num_classes), a clip at a time.

    Raises:
        InputError: The settings give no features of a clip.
    """
    module = WaveformModel(classifier).eval()
    try:
        with torch.inference_mode():
            rows = [module(torch.from_numpy(clip[None])) for clip in clips]
    except ValueError as error:
        raise InputError(f"CHECKPOINT's settings give no features of a clip: {error}") from error
    return torch.cat(rows).numpy()


def logits_of_file(
    path: Path, clips: NDArray[np.float32], batches: Sequence[int] = BATCHES
) -> NDArray[np.float32]:
    """Return the logits by onnxruntime on this CPU, in batches of these sizes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = np.split(clips, np.cumsum(batches)[:-1])
    logits = [session.run([OUTPUT], {INPUT: part})[0] for part in parts]
    return np.concatenate(logits)


def difference(logits: NDArray[np.float32], wanted: NDArray[np.float32]) -> Difference:
    """Return how far logits, (num_clips, num_classes), are from the wanted ones."""
    absolute = float(np.abs(logits - wanted).max())
    return Difference(
        absolute,
        absolute / max(float(np.abs(wanted).max()), float(np.finfo(np.float32).tiny)),
        int((logits.argmax(axis=1) == wanted.argmax(axis=1)).sum()),
        len(wanted),
    )
