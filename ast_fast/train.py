"""Train on all folds but one, test on that one, and survive being killed in between.

All randomness of an epoch is derived from (seed, fold, epoch) when it begins, and a checkpoint is
published whole after every epoch; so a fold that was killed and resumed ends with the same bits as
one that was not, on the same machine with the same number of threads. On CUDA torch is held to its
deterministic algorithms for that; so is cuBLAS, by the setting that importing the package makes.
"""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ast_fast import checkpoint
from ast_fast.augment import (
    FeatureChanges,
    Mixtures,
    draw_feature_changes,
    draw_mixtures,
    kept_patches,
    rows_of,
)
from ast_fast.data.dataset import Dataset, untrained_classes
from ast_fast.errors import InputError
from ast_fast.features import Statistics, compute_statistics, load_batch, model_input
from ast_fast.machine.atomic import atomic_write
from ast_fast.machine.device import autocast, deterministic_algorithms, resolve_amp, resolve_device
from ast_fast.machine.distributed import ALONE, Ranks
from ast_fast.machine.timing import Stages
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.optimiser import Optimiser
from ast_fast.settings.agree import check_same_fold, fold_identity
from ast_fast.settings.config import (
    Config,
    TrainingConfig,
)
from ast_fast.settings.rules import check_config
from ast_fast_kernels import mix

CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
PREDICTIONS = "predictions.csv"
HISTORY = "history.csv"

DRAWN_AHEAD = 512
"""Clips that random numbers are drawn for at once, in whole batches: a small operation among a
step's large ones finds nothing in the caches, and costs about as much for one batch as for many.
Another value gives a seed other numbers."""

CURVE_POINTS = 10
"""About how often a fold is tested while it trains: for the learning curve and nothing else."""


class DivergedError(InputError, RuntimeError):
    """The loss stopped being a number: the message says where, and which settings to change."""


@dataclass(frozen=True)
class EpochRow:
    """One line of a fold's history."""

    epoch: int
    """From 1."""
    learning_rate: float
    """Of the epoch's last step."""
    train_loss: float
    """Mean over the epoch's clips as the model saw them: augmented, labels smoothed."""
    train_accuracy: float
    """Share of those clips whose largest label share was predicted."""
    test_loss: float | None
    """Mean over the test fold, labels not smoothed; None in epochs that do not test."""
    test_accuracy: float | None
    seconds: float
    """Time of the training steps."""
    clips_per_second: float


@dataclass(frozen=True)
class FoldResult:
    """What one fold came to, after its last epoch."""

    fold: int
    accuracy: float
    loss: float
    history: list[EpochRow]
    test_indices: NDArray[np.int64]
    """Clips of the test fold, as indices into the data set, shape (num_test,)."""
    probabilities: NDArray[np.float32]
    """Shape (num_test, num_classes)."""


class Observer:
    """What is told how training goes, and does nothing: subclass it and override what matters."""

    def on_fold_start(self, fold: int, num_train: int, num_test: int, epochs: int) -> None:
        """See a fold begin, or be taken up again."""

    def on_step(
        self, fold: int, epoch: int, step: int, num_steps: int, loss: float, clips: int
    ) -> None:
        """See a training step of `clips` clips done: `step` of `num_steps`, both from 1."""

    def on_epoch(self, row: EpochRow) -> None:
        """See an epoch done and its checkpoint written."""

    def on_fold_end(self, result: FoldResult) -> None:
        """See a fold done, or found done by an earlier run."""


class _Observers(Observer):
    """Tells each of several in turn."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_fold_start(self, *what: Any) -> None:
        for observer in self._observers:
            observer.on_fold_start(*what)

    def on_step(self, *what: Any) -> None:
        for observer in self._observers:
            observer.on_step(*what)

    def on_epoch(self, *what: Any) -> None:
        for observer in self._observers:
            observer.on_epoch(*what)

    def on_fold_end(self, *what: Any) -> None:
        for observer in self._observers:
            observer.on_fold_end(*what)


def train_fold(
    config: Config,
    dataset: Dataset,
    fold: int,
    out_dir: Path,
    *,
    observers: Sequence[Observer] = (),
    stages: Stages | None = None,
    ranks: Ranks = ALONE,
) -> FoldResult:
    """Train on every other fold and return how the last epoch does on this one.

    Writes into `out_dir/fold-N`: history.csv after every epoch; predictions.csv and
    model.safetensors (the weights that were tested) at the end; checkpoint.safetensors in between.
    With `config.resume` it goes on from the checkpoint, or returns the finished fold's result;
    without, what an earlier run left there is replaced. Kernels are chosen by the caller, with
    `ast_fast_kernels.use_backend`.

    Args:
        config: The run's settings.
        dataset: All clips; only those of other folds are trained on or counted in statistics.
        fold: The fold to test on.
        out_dir: The run's folder; created if missing.
        observers: Are told about every step and epoch.
        stages: Takes the time spent in features, forward, backward and other; with `config.resume`
            that of the epochs in the checkpoint too.
        ranks: The processes that train it together, each calling this with all else equal. They
            must see the same `out_dir`, to which the first alone writes.
    Raises:
        InputError: A setting or the data cannot be used, or a file to resume from is damaged or
            belongs to another run.
        DivergedError: The loss became infinite or NaN.
    """
    observer = _Observers(observers)
    stages = stages or Stages()
    check_config(config, dataset.waveforms.shape[1])
    train_indices, test_indices = split_fold(dataset, fold)
    folder = out_dir / f"fold-{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.is_first:
        for left_behind in folder.glob(".*.partial.*"):  # by a process killed while writing
            left_behind.unlink(missing_ok=True)

    observer.on_fold_start(fold, len(train_indices), len(test_indices), config.training.epochs)
    result = None
    if config.resume:
        result = load_result(config, dataset, fold, folder, test_indices, stages)
    if result is None:
        with deterministic_algorithms(resolve_device(config.device)):
            result = _FoldTraining(config, dataset, fold, folder, observer, stages, ranks).run()
    observer.on_fold_end(result)
    return result


def split_fold(dataset: Dataset, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the indices of the training clips (all other folds) and of the test clips.

    Raises:
        InputError: The fold has no clip, or a class has none outside it.
    """
    test_indices = np.flatnonzero(dataset.folds == fold)
    train_indices = np.flatnonzero(dataset.folds != fold)
    if len(test_indices) == 0:
        known = ", ".join(str(name) for name in np.unique(dataset.folds))
        raise InputError(f"fold must be one of the data set's folds ({known}), got {fold}")
    if missing := untrained_classes(dataset, fold):
        raise InputError(
            f"every class must have a training clip outside fold {fold}, "
            f"but there is none of {', '.join(missing)}"
        )
    return train_indices, test_indices


def learning_rate(step: int, num_steps: int, steps_per_epoch: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then half a cosine.

    The peak is reached at the warm-up's last step and `final_learning_rate` at the last of all. A
    warm-up longer than half of the run is cut to that half.

    Args:
        step: From 0.
        num_steps: Steps of the whole run.
        steps_per_epoch: Steps of an epoch.
        config: Peak, end and length of the warm-up.
    """
    warmup_steps = min(round(config.warmup_epochs * steps_per_epoch), num_steps // 2)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps + 1) / (num_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * cosine


def ema_decay(step: int, decay: float) -> float:
    """Return the decay of the weights' average at a step (from 0): young averages forget faster.

    Source: TensorFlow's ExponentialMovingAverage with num_updates: min(decay, (1 + n) / (10 + n)).
    """
    return min(decay, (1 + step) / (10 + step))


def soft_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return each clip's cross-entropy against label shares, smoothed towards all classes.

    Args:
        logits: Shape (batch, num_classes).
        targets: Label shares, shape (batch, num_classes), each row summing to 1.
        label_smoothing: Share of each label spread evenly over all classes.
    Returns:
        Losses, shape (batch,), float32 or wider.
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    return -(targets * logits.float().log_softmax(dim=1)).sum(dim=1)


def epoch_seeds(seed: int, fold: int, epoch: int, rank: int = 0) -> tuple[int, int]:
    """Return two independent seeds of an epoch: for its data, and for torch's global generator.

    Processes that train together have the first in common, and each a second of its own. Epoch 0 is
    the initialisation of the weights.
    """
    data_seed, torch_seed = np.random.SeedSequence((seed, fold, epoch)).generate_state(2, np.uint64)
    return int(data_seed), int(torch_seed) + rank


class _Drawn(NamedTuple):
    """What was drawn for the clips of some batches."""

    mixtures: Mixtures
    changes: FeatureChanges
    keep: Tensor | None


class _FoldTraining:
    """One fold's data, model, average and optimiser, on their way through the epochs."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        fold: int,
        folder: Path,
        observer: Observer,
        stages: Stages,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.fold = fold
        self.folder = folder
        self.observer = observer
        self.stages = stages
        self.ranks = ranks
        self.train_indices, self.test_indices = split_fold(dataset, fold)
        self.device = resolve_device(config.device)
        self.amp = resolve_amp(config.training.amp, self.device)
        self.steps_per_epoch = math.ceil(len(self.train_indices) / config.training.batch_size)
        self.num_steps = self.steps_per_epoch * config.training.epochs
        self.history: list[EpochRow] = []
        self.statistics: Statistics | None = None
        self.outcome: tuple[NDArray[np.float32], float, float] | None = None  # of the last test

    def run(self) -> FoldResult:
        """Train from the checkpoint or from scratch, test, and write what a finished fold has."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._build()
            if not self._restore() and not self.config.features.norm_per_sample:
                with self.stages("features"):
                    self.statistics = compute_statistics(
                        self.dataset.waveforms, self.train_indices, self.config, device=self.device
                    )
            last = self.config.training.epochs
            for epoch in range(len(self.history) + 1, last + 1):
                row = self._train_epoch(epoch)
                if epoch == last or epoch % max(1, last // CURVE_POINTS) == 0:
                    self.outcome = self._test()
                    _, loss, accuracy = self.outcome
                    row = dataclasses.replace(row, test_loss=loss, test_accuracy=accuracy)
                self.history.append(row)
                if self.ranks.is_first:
                    with self.stages("other"):
                        self._save_checkpoint()
                        self._write_history()
                self.observer.on_epoch(row)
            return self._finish()

    def _build(self) -> None:
        config = self.config
        torch.manual_seed(epoch_seeds(config.seed, self.fold, 0)[1])
        num_classes = len(self.dataset.class_names)
        self.model = AudioSpectrogramTransformer.of(config, num_classes).to(self.device)
        self.trained: nn.Module = self.model
        if self.ranks.count > 1:
            self.trained = DistributedDataParallel(self.model)
        self.tested = self.model
        if config.training.ema_decay > 0:
            self.tested = copy.deepcopy(self.model).requires_grad_(False)
        self.optimiser = Optimiser(self.model, config.training)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)

    def _train_epoch(self, epoch: int) -> EpochRow:
        config = self.config
        data_seed, torch_seed = epoch_seeds(config.seed, self.fold, epoch, self.ranks.rank)
        torch.manual_seed(torch_seed)  # dropout and dither
        generator = torch.Generator().manual_seed(data_seed)
        order = self.train_indices[torch.randperm(len(self.train_indices), generator=generator)]
        self.model.train()
        total_loss, num_right, rate = 0.0, 0, 0.0
        batch_size = config.training.batch_size
        ahead = max(1, DRAWN_AHEAD // batch_size) * batch_size
        begin = perf_counter()
        for index in range(self.steps_per_epoch):
            first = index * batch_size
            batch = order[first : first + batch_size]
            rows = self.ranks.part(len(batch))
            step = (epoch - 1) * self.steps_per_epoch + index
            rate = learning_rate(step, self.num_steps, self.steps_per_epoch, config.training)
            with self.stages("features"):
                if first % ahead == 0:
                    drawn = self._draw(order[first : first + ahead], generator)
                features, targets, keep = self._augmented(drawn, batch, first % ahead, rows)
            with self.stages("forward"):
                with self._autocast():
                    logits = self.trained(features, keep=keep)
                losses = soft_cross_entropy(logits, targets, config.training.label_smoothing)
                right = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()
                loss_sum, right_sum = self.ranks.sum(losses.sum().item(), right.item())
                loss_value = loss_sum / len(batch)
            if not math.isfinite(loss_value):
                raise self._diverged(f"epoch {epoch}, step {index + 1}", loss_value)
            with self.stages("backward"):
                # Gradients are averaged over processes, whose rows can differ by one.
                self._update(losses.sum() * (self.ranks.count / len(batch)), rate, step)
            total_loss += loss_sum
            num_right += int(right_sum)
            self.observer.on_step(
                self.fold, epoch, index + 1, self.steps_per_epoch, loss_value, len(batch)
            )
        seconds = perf_counter() - begin
        count = len(order)
        return EpochRow(
            epoch=epoch,
            learning_rate=rate,
            train_loss=total_loss / count,
            train_accuracy=num_right / count,
            test_loss=None,
            test_accuracy=None,
            seconds=seconds,
            clips_per_second=count / seconds,
        )

    def _draw(self, indices: NDArray[np.int64], generator: torch.Generator) -> _Drawn:
        """Draw what becomes of the clips of some batches."""
        config, num_samples = self.config, self.dataset.waveforms.shape[1]
        levels = None
        if config.augment.mix_probability > 0:
            levels = torch.from_numpy(self.dataset.sound_levels[indices])
        labels = torch.from_numpy(self.dataset.labels[indices])
        mixtures = draw_mixtures(
            num_samples,
            levels,
            functional.one_hot(labels, len(self.dataset.class_names)).float(),
            config.augment,
            generator,
            batch_size=config.training.batch_size,
        )
        changes = draw_feature_changes(
            len(indices),
            config.fbank.num_frames(num_samples),
            config.augment,
            config.fbank,
            generator,
        )
        keep = kept_patches(len(indices), self.model.num_patches, config.augment, generator)
        return _Drawn(mixtures, changes, keep)

    def _augmented(
        self, drawn: _Drawn, batch: NDArray[np.int64], first: int, rows: slice
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return rows of a training batch: features, label shares, and the patches to look at.

        Args:
            drawn: What `_draw` gave for this batch and others.
            batch: The clips of the whole batch.
            first: Where they begin in what was drawn.
            rows: Which of the batch's rows to make.
        Returns:
            Shapes (rows, target_frames, num_mel_bins), (rows, num_classes) and (rows, num_kept).
        """
        among = slice(first + rows.start, first + rows.stop)
        mixtures, keep = rows_of(drawn.mixtures, among), drawn.keep
        clips = mixtures.clips - first
        waveforms: Tensor | NDArray[np.int16] = self.dataset.waveforms
        if self.device.type == "cpu":
            clips = torch.from_numpy(batch)[clips]  # read where they lie
        else:
            waveforms = load_batch(self.dataset.waveforms, batch, self.device)
        mixed = mix(waveforms, clips, mixtures.starts, mixtures.factors)
        features = model_input(
            mixed, self.config, self.statistics, changes=rows_of(drawn.changes, among)
        )
        if keep is not None:
            keep = keep[among].to(self.device)
        return features, mixtures.targets.to(self.device), keep

    def _update(self, loss: Tensor, rate: float, step: int) -> None:
        """Take one optimiser step and move the average towards the new weights."""
        training = self.config.training
        self.optimiser.step(loss, rate, self.scaler)
        if training.ema_decay > 0:
            with torch.no_grad():
                decay = ema_decay(step, training.ema_decay)
                update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
                update(list(self.tested.parameters()), list(self.model.parameters()), 0)

    @torch.inference_mode()
    def _test(self) -> tuple[NDArray[np.float32], float, float]:
        """Return the test fold's probabilities, mean loss and accuracy, in training's precision."""
        config = self.config
        self.tested.eval()
        mine = self.test_indices[self.ranks.part(len(self.test_indices))]
        logits = []
        for first in range(0, len(mine), config.training.batch_size):
            indices = mine[first : first + config.training.batch_size]
            with self.stages("features"):
                waveforms = load_batch(self.dataset.waveforms, indices, self.device)
                features = model_input(waveforms, config, self.statistics)
            with self.stages("forward"), self._autocast():
                logits.append(self.tested(features).float().cpu().numpy())
        labels = torch.from_numpy(self.dataset.labels[self.test_indices])
        width = (0, len(self.dataset.class_names))  # of a process whose part is empty
        all_logits = torch.from_numpy(
            self.ranks.gather(np.concatenate([np.empty(width, np.float32), *logits]))
        )
        loss = functional.cross_entropy(all_logits, labels).item()
        if not math.isfinite(loss):
            raise self._diverged("the test", loss)
        accuracy = int((all_logits.argmax(dim=1) == labels).sum()) / len(labels)
        return all_logits.softmax(dim=1).numpy(), loss, accuracy

    def _autocast(self) -> torch.autocast:
        return autocast(self.device, self.amp)

    def _diverged(self, where: str, loss: float) -> DivergedError:
        training = self.config.training
        return DivergedError(
            f"the loss of fold {self.fold} became {loss} at {where}; lower "
            f"training.learning_rate ({training.learning_rate:g}), or set "
            f"training.clip_grad_norm (now {training.clip_grad_norm:g}) or training.amp off"
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "run": fold_identity(self.config, self.fold, self.dataset.key),
            "class_names": self.dataset.class_names,
            "statistics": self.statistics and dataclasses.asdict(self.statistics),
            "history": [dataclasses.asdict(row) for row in self.history],
            "stages": self.stages.state(),
        }

    def _save_checkpoint(self) -> None:
        tensors = _prefixed("model", self.model.state_dict())
        if self.tested is not self.model:
            tensors |= _prefixed("average", self.tested.state_dict())
        tensors |= _prefixed("optimizer", self.optimiser.state())
        facts = self._facts() | {"scaler": self.scaler.state_dict()}
        checkpoint.save(self.folder / CHECKPOINT, tensors, facts)

    def _restore(self) -> bool:
        """Take up the checkpoint, if there is one to resume from; say whether."""
        path = self.folder / CHECKPOINT
        if not self.config.resume:
            if self.ranks.is_first:
                for name in (CHECKPOINT, MODEL):
                    (self.folder / name).unlink(missing_ok=True)
            return False
        if not path.exists():
            return False
        tensors, facts = checkpoint.load(path)
        check_same_fold(path, facts["run"], fold_identity(self.config, self.fold, self.dataset.key))
        self.model.load_state_dict(_without_prefix("model", tensors))
        if self.tested is not self.model:
            self.tested.load_state_dict(_without_prefix("average", tensors))
        self.optimiser.load_state(_without_prefix("optimizer", tensors))
        self.scaler.load_state_dict(facts["scaler"])
        self.stages.take_up(facts["stages"])
        self.statistics = facts["statistics"] and Statistics(**facts["statistics"])
        self.history = [EpochRow(**row) for row in facts["history"]]
        return True

    def _write_history(self) -> None:
        with (
            atomic_write(self.folder / HISTORY) as path,
            path.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(field.name for field in dataclasses.fields(EpochRow))
            writer.writerows(dataclasses.astuple(row) for row in self.history)

    def _finish(self) -> FoldResult:
        """Write what a finished fold has; model.safetensors comes last and says that it is."""
        probabilities, loss, accuracy = self.outcome or self._test()
        if self.ranks.is_first:
            with self.stages("other"):
                self._write_history()
                _write_predictions(
                    self.folder / PREDICTIONS, self.dataset, self.test_indices, probabilities
                )
                facts = self._facts() | {"accuracy": accuracy, "loss": loss}
                checkpoint.save(self.folder / MODEL, self.tested.state_dict(), facts)
                (self.folder / CHECKPOINT).unlink()
        return FoldResult(self.fold, accuracy, loss, self.history, self.test_indices, probabilities)


def load_result(
    config: Config,
    dataset: Dataset,
    fold: int,
    folder: Path,
    test_indices: NDArray[np.int64],
    stages: Stages | None = None,
) -> FoldResult | None:
    """Return the result of a fold that an earlier run finished; None if it did not.

    Args:
        config: The run's settings.
        dataset: Its clips.
        fold: The fold.
        folder: The fold's own.
        test_indices: Of the clips that it was tested on.
        stages: Takes up the time that the fold took.
    Raises:
        InputError: The file is damaged, or of another run.
    """
    path = folder / MODEL
    if not path.exists():
        return None
    _, facts = checkpoint.load(path)
    check_same_fold(path, facts["run"], fold_identity(config, fold, dataset.key))
    if stages is not None:
        stages.take_up(facts["stages"])
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return FoldResult(
        fold=fold,
        accuracy=facts["accuracy"],
        loss=facts["loss"],
        history=[EpochRow(**row) for row in facts["history"]],
        test_indices=test_indices,
        probabilities=_read_predictions(folder / PREDICTIONS, dataset, test_indices),
    )


def _write_predictions(
    path: Path,
    dataset: Dataset,
    test_indices: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> None:
    """Write one line a clip; targets are the csv's, probabilities read back to the same bits."""
    targets = {int(dataset.labels[i]): clip.target for i, clip in enumerate(dataset.clips)}
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "predicted", *dataset.class_names])
        for index, row in zip(test_indices, probabilities, strict=True):
            clip = dataset.clips[index]
            predicted = targets[int(row.argmax())]
            shares = [f"{share:.9g}" for share in row]  # nine digits name a float32
            writer.writerow([clip.filename, clip.fold, clip.target, predicted, *shares])


def _read_predictions(
    path: Path, dataset: Dataset, test_indices: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the probabilities that `_write_predictions` wrote for these clips."""
    expected = [dataset.clips[index].filename for index in test_indices]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        probabilities = np.array([[float(share) for share in row[4:]] for row in rows], np.float32)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} must hold the predictions of a finished fold, but cannot be read ({error}); "
            f"remove {path.parent} to train the fold again"
        ) from error
    shape = (len(expected), len(dataset.class_names))
    if [row[0] for row in rows] != expected or probabilities.shape != shape:
        raise InputError(
            f"{path} must hold one line for each of the {len(expected)} clips of its test fold; "
            f"it does not, so remove {path.parent} to train the fold again"
        )
    return probabilities


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name[len(start) :]: tensors[name] for name in tensors if name.startswith(start)}
