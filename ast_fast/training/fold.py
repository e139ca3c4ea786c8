"""Train on all folds except one, test on that one, and resume after being killed.

All randomness of an epoch is derived from (seed, fold, epoch) when it begins, and a complete
checkpoint is published after every epoch. So a fold that was killed and resumed gives the same bits
as one that was not, on the same machine with the same number of threads. On CUDA this needs torch's
deterministic algorithms, set here, and cuBLAS's, set when the package is imported.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ast_fast.data.dataset import Dataset, untrained_classes
from ast_fast.features import Statistics, compute_statistics, load_batch, model_input
from ast_fast.machine.device import Placement, deterministic_algorithms, resolve_placement
from ast_fast.machine.distributed import ALONE, Ranks
from ast_fast.machine.timing import Stages
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.pretrained.finetune import pretrained_weights
from ast_fast.settings.agree import check_same_fold, fold_identity
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_config
from ast_fast.training import checkpoint
from ast_fast.training.batches import Batches, Inputs
from ast_fast.training.checkpoint import CHECKPOINT
from ast_fast.training.manifest import MANIFEST, describe, remedy, write_manifest
from ast_fast.training.observers import Observer, Observers
from ast_fast.training.results import (
    MODEL,
    RESULTS,
    EpochRow,
    FoldResult,
    accuracy_of,
    load_result,
    write_history,
    write_predictions,
)
from ast_fast.training.schedule import (
    ema_decay,
    epoch_seeds,
    is_unmixed,
    learning_rate,
    presence_bias,
)
from ast_fast.training.step import (
    Learner,
    Outcome,
    ReplayedStep,
    Step,
    is_capturable,
    late,
    training_step,
)
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import remove_leftovers
from ast_fast_kernels.files.text import one_name

CURVE_POINTS = 10
"""About how often a fold is tested while it trains, for the learning curve only."""


class DivergedError(InputError, RuntimeError):
    """The loss is not finite; the message says where, and which settings to change."""


def train_fold(
    config: Config,
    dataset: Dataset,
    fold: int,
    out_dir: Path,
    *,
    observers: Sequence[Observer] = (),
    stages: Stages | None = None,
    ranks: Ranks = ALONE,
    placement: Placement | None = None,
) -> FoldResult:
    """Train on every other fold and return the last epoch's result on this one.

    Writes into `out_dir/fold-N`: history.csv and checkpoint.safetensors after every epoch;
    predictions.csv, model.safetensors (the tested weights) and the manifest of these files at the
    end, when the checkpoint is removed. With `config.resume` it continues from the checkpoint, or
    returns the result of a finished fold; otherwise it replaces the files of an earlier run. The
    caller chooses the kernels, with `ast_fast_kernels.use_backend`.

    Args:
        config: The run's settings.
        dataset: All clips; training and statistics use only those of the other folds.
        fold: The fold to test on.
        out_dir: The run's folder; created if missing.
        observers: Called for every step and epoch.
        stages: Counts the seconds spent in features, forward, backward, replayed steps and other;
            with `config.resume`, those of the epochs in the checkpoint too.
        ranks: The processes that train the fold together; each calls this with the other arguments
            equal. They must see the same `out_dir`; only the first writes to it.
        placement: Where the model trains, if the caller has checked the settings for it. None
            resolves and checks here.
    Raises:
        InputError: A setting or the data cannot be used, or a file to resume from is damaged or
            belongs to another run.
        DivergedError: The loss became infinite or NaN.
    """
    stages = stages or Stages()
    if placement is None:
        placement = resolve_placement(config.device, config.training.amp)
        check_config(config, dataset.num_samples, placement)
    train_indices, test_indices = split_fold(dataset, fold)
    folder = out_dir / f"fold-{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    if ranks.is_first:
        remove_leftovers(folder)

    observer = Observers(observers)
    observer.on_fold_start(fold, len(train_indices), len(test_indices), config.training.epochs)
    result = None
    if config.resume:
        result = load_result(config, dataset, fold, folder, test_indices, stages)
        if result is not None and ranks.is_first:
            (folder / CHECKPOINT).unlink(missing_ok=True)  # of a process killed before this
    if result is None:
        with reproducible(placement.device):
            training = _FoldTraining(
                config, dataset, fold, folder, placement, observer, stages, ranks
            )
            result = training.run()
    observer.on_fold_end(result)
    return result


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Make torch deterministic in the block, and restore its random state afterwards."""
    devices = [device] if device.type == "cuda" else []
    with deterministic_algorithms(device), torch.random.fork_rng(devices=devices):
        yield


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
            f"got none of {', '.join(map(one_name, missing))}"
        )
    return train_indices, test_indices


class _Test(NamedTuple):
    """The result of a test."""

    probabilities: NDArray[np.float32]
    """Shape (num_test, num_classes)."""
    loss: float
    accuracy: float


class _FoldTraining:
    """One fold in training: its data, what learns, and what is known of it so far."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        fold: int,
        folder: Path,
        placement: Placement,
        observer: Observer,
        stages: Stages,
        ranks: Ranks,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.fold = fold
        self.folder = folder
        self.placement = placement
        self.observer = observer
        self.stages = stages
        self.ranks = ranks
        self.train_indices, self.test_indices = split_fold(dataset, fold)
        self.steps_per_epoch = math.ceil(len(self.train_indices) / config.training.batch_size)
        self.num_steps = self.steps_per_epoch * config.training.epochs
        self.history: list[EpochRow] = []
        self.statistics: Statistics | None = None
        self.outcome: _Test | None = None  # of the last test

        torch.manual_seed(epoch_seeds(config.seed, fold, 0)[1])
        num_classes = len(dataset.class_names)
        model = AudioSpectrogramTransformer.of(config, num_classes)
        if config.training.loss == "presence":
            nn.init.constant_(model.head.bias, presence_bias(num_classes))
        if config.model.pretrained is not None:
            fresh = model.state_dict().items()
            head = {name: tensor for name, tensor in fresh if name.startswith("head")}
            model.load_state_dict(head | pretrained_weights(config))
        self.learner = Learner.of(model.to(placement.device), config.training, placement)

    def run(self) -> FoldResult:
        """Train from the checkpoint or from scratch, test, and write the files of the fold."""
        if not self._restore() and not self.config.features.norm_per_sample:
            with self.stages("features"):
                self.statistics = compute_statistics(
                    self.dataset.waveforms,
                    self.train_indices,
                    self.config,
                    device=self.placement.device,
                )
        with self.stages("features"):
            batches = Batches(
                self.config,
                self.dataset,
                self.statistics,
                self.placement.device,
                capturable=is_capturable(self.placement),
            )
        with training_step(
            self.config,
            self.learner,
            batches,
            self.placement,
            self.stages,
            self.ranks,
            min(self.config.training.batch_size, len(self.train_indices)),
        ) as step:
            self._train(batches, step)
        return self._finish()

    def _train(self, batches: Batches, step: Step | ReplayedStep) -> None:
        """Train the epochs that are left, and test after some of them."""
        last = self.config.training.epochs
        for epoch in range(len(self.history) + 1, last + 1):
            row = self._train_epoch(epoch, batches, step)
            if epoch == last or epoch % max(1, last // CURVE_POINTS) == 0:
                self.outcome = self._test()
                row = dataclasses.replace(
                    row, test_loss=self.outcome.loss, test_accuracy=self.outcome.accuracy
                )
            self.history.append(row)
            if self.ranks.is_first:
                with self.stages("other"):
                    self._save_checkpoint()
                    write_history(self.folder, self.history)
            self.observer.on_epoch(row)

    def _train_epoch(self, epoch: int, batches: Batches, step: Step | ReplayedStep) -> EpochRow:
        data_seed, torch_seed = epoch_seeds(self.config.seed, self.fold, epoch, self.ranks.rank)
        torch.manual_seed(torch_seed)  # dropout and dither
        generator = torch.Generator().manual_seed(data_seed)
        order = self.train_indices[torch.randperm(len(self.train_indices), generator=generator)]
        self.learner.model.train()
        total_loss, num_right = 0.0, 0
        begin = perf_counter()
        unmixed = is_unmixed(epoch, self.config)
        loaded = batches.of_epoch(order, generator, self.ranks, unmixed=unmixed)
        for number, clips, outcome in late(self._started(epoch, loaded, step), by=step.ahead):
            with self.stages(outcome.stage, on_host=True):
                values = outcome.values.read()
            loss_sum, right_sum = self.ranks.sum(*values)
            loss = loss_sum / clips
            if not math.isfinite(loss):
                raise self._diverged(f"epoch {epoch}, step {number}", loss)
            total_loss += loss_sum
            num_right += int(right_sum)
            self.observer.on_step(self.fold, epoch, number, self.steps_per_epoch, loss, clips)
        seconds = perf_counter() - begin
        return EpochRow(
            epoch=epoch,
            learning_rate=self._rate(epoch * self.steps_per_epoch - 1),
            train_loss=total_loss / len(order),
            train_accuracy=num_right / len(order),
            test_loss=None,
            test_accuracy=None,
            seconds=seconds,
            clips_per_second=len(order) / seconds,
        )

    def _started(
        self, epoch: int, loaded: Iterator[tuple[int, Inputs]], step: Step | ReplayedStep
    ) -> Iterator[tuple[int, int, Outcome]]:
        """Start the steps of an epoch; yield the number of each, from 1, its clips and outcome."""
        first = (epoch - 1) * self.steps_per_epoch
        with self.stages("features", on_host=True):
            upcoming = next(loaded)
        for number in range(1, self.steps_per_epoch + 1):
            clips, inputs = upcoming
            # Ranks average their gradients, and their numbers of rows can differ by one.
            factor = self.ranks.count / clips
            decay = ema_decay(first + number - 1, self.config.training.ema_decay)
            outcome = step(inputs, factor, self._rate(first + number - 1), decay)
            with self.stages("features", on_host=True):  # while a GPU works on this step
                upcoming = next(loaded, upcoming)
            yield number, clips, outcome

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step, from 0."""
        return learning_rate(step, self.num_steps, self.steps_per_epoch, self.config.training)

    @torch.inference_mode()
    def _test(self) -> _Test:
        """Test the weights' average on the test fold, in training's precision."""
        config, device, tested = self.config, self.placement.device, self.learner.tested
        tested.eval()
        mine = self.test_indices[self.ranks.part(len(self.test_indices))]
        logits = []
        for first in range(0, len(mine), config.training.batch_size):
            indices = mine[first : first + config.training.batch_size]
            with self.stages("features"):
                waveforms = load_batch(self.dataset.waveforms, indices, device)
                features = model_input(waveforms, config, self.statistics)
            with self.stages("forward"), self.placement.autocast():
                logits.append(tested(features).float().cpu().numpy())
        labels = torch.from_numpy(self.dataset.labels[self.test_indices])
        width = (0, len(self.dataset.class_names))  # for a process whose part is empty
        all_logits = torch.from_numpy(
            self.ranks.gather(np.concatenate([np.empty(width, np.float32), *logits]))
        )
        loss = functional.cross_entropy(all_logits, labels).item()
        if not math.isfinite(loss):
            raise self._diverged("the test", loss)
        probabilities = all_logits.softmax(dim=1).numpy()
        return _Test(probabilities, loss, accuracy_of(probabilities, labels.numpy()))

    def _diverged(self, where: str, loss: float) -> DivergedError:
        training = self.config.training
        return DivergedError(
            f"the loss of fold {self.fold} became {loss} at {where}; lower "
            f"training.learning_rate (now {training.learning_rate:g}), change "
            f"training.clip_grad_norm (now {training.clip_grad_norm:g}), or turn training.amp off"
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
        facts = self._facts() | {"scaler": self.learner.scaler.state_dict()}
        checkpoint.save(self.folder / CHECKPOINT, self.learner.tensors(), facts)

    def _restore(self) -> bool:
        """Load the checkpoint to resume from, if any; return whether it did."""
        path = self.folder / CHECKPOINT
        if not self.config.resume:
            if self.ranks.is_first:
                for name in (MANIFEST, CHECKPOINT, MODEL):
                    (self.folder / name).unlink(missing_ok=True)
            return False
        if not path.exists():
            return False
        tensors, facts = checkpoint.load(path)
        if "scaler" not in facts:
            raise InputError(
                f"{path} must be the checkpoint of a fold in training; {remedy(self.folder)}"
            )
        try:
            self._take_up(path, tensors, facts)
        except InputError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise InputError(
                f"{path} must hold the whole state of its fold, and does not "
                f"({type(error).__name__}: {one_name(error)}); remove it to train its fold again"
            ) from error
        return True

    def _take_up(self, path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        check_same_fold(path, facts["run"], fold_identity(self.config, self.fold, self.dataset.key))
        self.learner.load(tensors, facts["scaler"])
        self.stages.take_up(facts["stages"])
        self.statistics = facts["statistics"] and Statistics(**facts["statistics"])
        self.history = [EpochRow(**row) for row in facts["history"]]

    def _finish(self) -> FoldResult:
        """Write the files of a finished fold; the manifest, the last, marks it finished."""
        outcome = self.outcome or self._test()
        if self.ranks.is_first:
            with self.stages("other"):
                write_history(self.folder, self.history)
                write_predictions(
                    self.folder, self.dataset, self.test_indices, outcome.probabilities
                )
                facts = self._facts() | {"accuracy": outcome.accuracy, "loss": outcome.loss}
                facts |= {"beside": [MANIFEST]}  # so that a lost manifest is missed
                checkpoint.save(self.folder / MODEL, self.learner.tested.state_dict(), facts)
                write_manifest(self.folder, describe(self.folder, RESULTS))
                (self.folder / CHECKPOINT).unlink()
        return FoldResult(
            fold=self.fold,
            accuracy=outcome.accuracy,
            loss=outcome.loss,
            history=self.history,
            test_indices=self.test_indices,
            probabilities=outcome.probabilities,
        )
