"""A trained model ready for use: clips in, probabilities or embeddings out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ast_fast.data.cache import decode_settings
from ast_fast.features import Statistics, model_input
from ast_fast.inference import InferenceModel
from ast_fast.machine.device import Placement, nearest_amp
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.pretrained.checkpoint import find, load_found
from ast_fast.pretrained.digest import digest_of_model
from ast_fast.pretrained.folder import CONFIG
from ast_fast.settings.config import AudioConfig, Config
from ast_fast.settings.rules import MAX_CLIP_SECONDS
from ast_fast.training.trained import check_is_file, load_trained
from ast_fast_kernels.cores import on_one_thread_if_forked, one_thread_if_forked
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.sealed import digest_of_file


@dataclass(frozen=True)
class Classifier:
    """A trained model with its settings, class names and statistics."""

    model: AudioSpectrogramTransformer
    config: Config
    class_names: list[str]
    statistics: Statistics | None
    placement: Placement
    """The precision is that of training, or the nearest that the device supports."""
    multi_label: bool = False
    """Whether a clip can be of several classes: probabilities are sigmoids, not a softmax."""
    shortest: int | None = None
    """Samples to which a shorter clip is padded with zeros; None is those of a whole clip. Of what
    is longer, missing frames are padded, by `config.features.padding`."""
    temperature: float | None = None
    """What logits are divided by before the softmax; None is 1."""
    frozen: InferenceModel | None = None
    """The model made ready for a CPU; None runs it as it is."""

    @on_one_thread_if_forked
    def ready(self) -> Classifier:
        """Return a classifier that runs as fast as this device can.

        On a CPU it takes over this one's model, as `InferenceModel` does: its weights can no longer
        be trained, saved or exported.
        """
        if self.frozen is not None or self.placement.device.type != "cpu":
            return self
        precision = self.placement.amp or torch.float32
        return replace(self, frozen=InferenceModel(self.model, precision=precision))

    def features(self, windows: Tensor) -> Tensor:
        """Return the model's input for clips, int16, shape (batch, num_samples)."""
        return model_input(windows, self.config, self.statistics)

    def embeddings(self, windows: Tensor) -> Tensor:
        """Return what the model's head classifies, on the CPU: float32, (batch, pooled_width)."""
        return self._run(windows, lambda features: [self._runs.embed(features)])[0]

    def logits(self, windows: Tensor) -> Tensor:
        """Return the logits of all classes for clips, on the CPU: float32, (batch, num_classes)."""
        return self._run(windows, lambda features: [self._runs(features)])[0]

    def probabilities(self, windows: Tensor) -> Tensor:
        """Return the probabilities of all classes for clips, on the CPU: (batch, num_classes).

        They are the softmax of the logits divided by `temperature`, or their sigmoids.
        """
        return self.outputs(windows)[1]

    def outputs(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings and the probabilities of clips, by one pass of the model."""
        embeddings, probabilities = self._run(windows, self._embed_and_classify)
        return embeddings, probabilities

    def _embed_and_classify(self, features: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self._runs.embed(features)
        logits = self._runs.classify(embeddings).float().cpu()
        if self.multi_label:
            return embeddings, logits.sigmoid()
        return embeddings, (logits / (self.temperature or 1.0)).softmax(dim=1)

    def _run(self, windows: Tensor, compute: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """Return what the model computes of clips' features, on the CPU, in float32."""
        with one_thread_if_forked(), torch.inference_mode(), self.placement.autocast():
            found = compute(self.features(windows.to(self.placement.device)))
            return [tensor.float().cpu() for tensor in found]

    @property
    def _runs(self) -> AudioSpectrogramTransformer | InferenceModel:
        return self.model if self.frozen is None else self.frozen


def load_classifier(path: Path, device: torch.device) -> Classifier:
    """Return the model of a finished fold.

    Raises:
        InputError: The file is missing, damaged, or not a model of this program.
    """
    trained = load_trained(path)
    model = trained.model.to(device).eval().requires_grad_(False)
    placement = Placement(device, nearest_amp(trained.config.training.amp, device))
    return Classifier(
        model,
        trained.config,
        trained.class_names,
        trained.statistics,
        placement,
        temperature=trained.temperature,
    )


@on_one_thread_if_forked
def load_any_classifier(
    path: Path,
    device: torch.device,
    *,
    needs_classes: bool = True,
    seconds: float | None = None,
) -> Classifier:
    """Return the model of a finished fold, or one that others trained.

    Args:
        path: A fold's model.safetensors, a folder of transformers, or a `.pth` of the original AST.
        device: Where the model is to run.
        needs_classes: Whether to refuse one without a head, which gives embeddings alone.
        seconds: Length of a clip, for a model that others trained: its positions are cut or
            interpolated. None is that of training.
    Raises:
        InputError: The file is missing, damaged, or no such model; or `seconds` is out of range,
            or given for a finished fold's.
    """
    if not _is_of_others(path):
        classifier = load_classifier(path, device)
        if seconds is None:
            return classifier
        raise InputError(
            f"--seconds must not be given for {path}, a model of this program, whose clips have "
            f"{classifier.config.audio.clip_seconds:g} seconds"
        )
    if seconds is not None and not 0 < seconds <= MAX_CLIP_SECONDS:
        raise InputError(
            f"--seconds must be above 0 and at most {MAX_CLIP_SECONDS:g}, got {seconds:g}"
        )
    found = find(path)
    config, num_frames = found.preprocessor.config(found.model), None
    if seconds is not None:
        config = replace(config, audio=AudioConfig(clip_seconds=seconds))
        num_frames = config.fbank.num_frames(decode_settings(config).num_samples)
    others = load_found(found, num_frames=num_frames)
    config = replace(others.config, audio=config.audio)
    if needs_classes and not others.class_names:
        raise InputError(
            f"CHECKPOINT must have a head that classifies, which {path} lacks: fine-tune it by "
            "ast_fast.cv --model.pretrained, or take its embeddings by ast_fast.extract"
        )
    return Classifier(
        others.model.to(device).requires_grad_(False),
        config,
        others.class_names,
        others.statistics,
        Placement(device, nearest_amp(config.training.amp, device)),
        multi_label=others.multi_label,
        shortest=config.fbank.window_size,
    )


def batches_of_one_length(
    windows: Sequence[NDArray[np.int16]],
) -> Iterator[tuple[NDArray[np.intp], Tensor]]:
    """Yield clips in batches, one for each length: their places, and (num_clips, num_samples)."""
    lengths = np.array([len(window) for window in windows])
    for length in np.unique(lengths):
        places = np.flatnonzero(lengths == length)
        yield places, torch.from_numpy(np.stack([windows[place] for place in places.tolist()]))


def digest_of_any(path: Path) -> str:
    """Return the SHA-256 of a model that `load_any_classifier` takes.

    Raises:
        InputError: A file of it cannot be read.
    """
    if _is_of_others(path):
        return digest_of_model(path)
    check_is_file(path)
    try:
        return digest_of_file(path)
    except OSError as error:
        raise InputError(f"CHECKPOINT {path} cannot be read: {error.strerror}") from error


def _is_of_others(path: Path) -> bool:
    settings = (path.parent if path.suffix == ".safetensors" else path) / CONFIG
    return path.suffix == ".pth" or os.path.isfile(settings)  # is_file raises on a long name
