"""One step of training: operator by operator, or replayed as a CUDA graph.

Both forms run the same function on the same kinds of tensors, so that their results are equal to
the bit. On a GPU all that changes from step to step lies on the device, and no operator waits for
it.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ast_fast.augment import each_of
from ast_fast.machine.device import Placement
from ast_fast.machine.distributed import Ranks
from ast_fast.machine.graphs import CaptureError, CudaGraph, HostCopy
from ast_fast.machine.timing import Stages
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import Config, TrainingConfig
from ast_fast.training.batches import Batches, Inputs
from ast_fast.training.checkpoint import prefixed, without_prefix
from ast_fast.training.optimiser import Optimiser
from ast_fast.training.schedule import clip_losses
from ast_fast_kernels.errors import InputError

_T = TypeVar("_T")

WARM_UP_STEPS = 3
"""Steps before the one that is captured: they compile, look up and allocate what it needs."""

GRAPH = "graph"
"""Stage of a run's time: waiting for replayed steps, features included."""


def is_capturable(placement: Placement) -> bool:
    """Return whether steps are such that a CUDA graph can hold them: all those on a GPU are."""
    return placement.device.type == "cuda"


def uses_graphs(config: Config, placement: Placement, ranks: Ranks) -> bool:
    """Return whether a run replays its steps: on a GPU, by one process, unless switched off."""
    return config.training.cuda_graph and is_capturable(placement) and ranks.count == 1


@dataclass(frozen=True)
class Learner:
    """What training changes: a model, its moving average, the optimiser and the loss's scale."""

    model: AudioSpectrogramTransformer
    average: AudioSpectrogramTransformer | None
    """None if none is kept."""
    optimiser: Optimiser
    scaler: torch.amp.GradScaler

    @classmethod
    def of(
        cls, model: AudioSpectrogramTransformer, config: TrainingConfig, placement: Placement
    ) -> Self:
        """Return what trains a model, which is where it shall be trained."""
        return cls(
            model,
            copy.deepcopy(model).requires_grad_(False) if config.ema_decay > 0 else None,
            Optimiser(model, config, capturable=is_capturable(placement)),
            torch.amp.GradScaler(placement.device.type, enabled=placement.amp == torch.float16),
        )

    @property
    def tested(self) -> AudioSpectrogramTransformer:
        """The model to test: the average, if one is kept."""
        return self.model if self.average is None else self.average

    def tensors(self) -> dict[str, Tensor]:
        """Return everything but the scaler's state, by name."""
        tensors = prefixed("model", self.model.state_dict())
        if self.average is not None:
            tensors |= prefixed("average", self.average.state_dict())
        return tensors | prefixed("optimizer", self.optimiser.state())

    def load(self, tensors: Mapping[str, Tensor], scaler: dict[str, Any]) -> None:
        """Load what `tensors` and the scaler's `state_dict` returned."""
        self.model.load_state_dict(without_prefix("model", tensors))
        if self.average is not None:
            self.average.load_state_dict(without_prefix("average", tensors))
        self.optimiser.load_state(
            without_prefix("optimizer", tensors), may_be_empty=self.scaler.is_enabled()
        )
        self.scaler.load_state_dict(scaler)


class Outcome(NamedTuple):
    """A step's results, which may not be there yet."""

    values: HostCopy
    """The sum of the losses, and how many clips were classified right."""
    stage: str
    """Stage of a run's time that waits for them."""


class Step:
    """A step of training, run operator by operator.

    Args:
        config: `loss` and `label_smoothing` are used.
        learner: What it changes.
        trained: The learner's model, or its wrapper for several processes.
        batches: Compute the features.
        placement: Where it runs.
        stages: Count its time, by features, forward and backward.
    """

    ahead = 0
    """Steps to start before the results of this one are read."""

    def __init__(
        self,
        config: TrainingConfig,
        learner: Learner,
        trained: nn.Module,
        batches: Batches,
        placement: Placement,
        stages: Stages,
    ) -> None:
        self._config = config
        self._learner = learner
        self._trained = trained
        self._batches = batches
        self._placement = placement
        self._stages = stages
        self._rate: float | Tensor = 0.0
        self._pull: float | Tensor = 0.0
        if is_capturable(placement):
            self._rate = torch.zeros((), device=placement.device)
            self._pull = torch.zeros((), device=placement.device)

    def __call__(self, inputs: Inputs, factor: float, rate: float, decay: float) -> Outcome:
        """Take a step.

        Args:
            inputs: Rows of a batch.
            factor: Of the sum of their losses, whose gradient is followed.
            rate: The learning rate.
            decay: Of the weights' average.
        """
        self.set(rate, decay)
        return Outcome(HostCopy(self.run(inputs, factor, self._stages)), "backward")

    def set(self, rate: float, decay: float) -> None:
        """Set the learning rate and the decay of the weights' average, for `run`."""
        if isinstance(self._rate, Tensor) and isinstance(self._pull, Tensor):
            self._rate.fill_(rate)
            self._pull.fill_(1 - decay)
        else:
            self._rate, self._pull = rate, 1 - decay

    def run(self, inputs: Inputs, factor: float, stages: Stages) -> Tensor:
        """Do all that a step does, and that a CUDA graph of it holds.

        Args:
            inputs: As `__call__`; the other arguments of its are those of `set`.
            factor: As `__call__`.
            stages: Count the time of each part.
        Returns:
            The sum of the losses and the number of clips classified right, shape (2,), float64.
        """
        learner = self._learner
        with stages("features"):
            features = self._batches.features(inputs)
        with stages("forward"):
            with self._placement.autocast():
                logits = self._trained(features, keep=inputs.drawn.keep)
            targets = inputs.drawn.mixtures.targets
            losses = clip_losses(logits, targets, self._config)
            right = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum()
            loss = losses.sum()
            outcome = torch.stack((loss.detach().double(), right.double()))
        with stages("backward"):
            learner.optimiser.step(loss * factor, self._rate, learner.scaler)
            if learner.average is not None:
                move_average(learner.average, learner.model, self._pull)
        return outcome


class ReplayedStep:
    """A step of training, captured as a CUDA graph and replayed.

    The first steps run operator by operator, and so does a batch of another size: the last one of
    an epoch, if it is smaller. A captured step does not run; the replay that follows does.

    Args:
        step: The step to capture.
        rows: Rows of the batches that are replayed.
        graph: Holds the step.
    """

    ahead = 1

    def __init__(self, step: Step, rows: int, graph: CudaGraph) -> None:
        self._step = step
        self._rows = rows
        self._graph = graph
        self._num_warm = 0
        self._held: tuple[Inputs, Tensor] | None = None  # what each replay reads, and what it fills

    def __call__(self, inputs: Inputs, factor: float, rate: float, decay: float) -> Outcome:
        """Take a step, as `Step` does.

        Raises:
            InputError: A graph cannot hold a step of these settings.
        """
        if len(inputs.drawn.mixtures.targets) != self._rows:
            return self._step(inputs, factor, rate, decay)
        if self._num_warm < WARM_UP_STEPS:
            self._num_warm += 1
            with self._graph.warm_up():
                return self._step(inputs, factor, rate, decay)
        if self._held is None:
            self._held = self._captured(each_of(inputs, Tensor.clone), factor)
        held, values = self._held
        for place, value in zip(_tensors(held), _tensors(inputs), strict=True):
            place.copy_(value)
        self._step.set(rate, decay)
        self._graph.replay()
        return Outcome(HostCopy(values), GRAPH)

    def _captured(self, held: Inputs, factor: float) -> tuple[Inputs, Tensor]:
        try:
            return held, self._graph.capture(lambda: self._step.run(held, factor, Stages()))
        except CaptureError as error:
            raise InputError(
                "training.cuda_graph must be off with these settings: a step of theirs cannot be "
                f"captured as a CUDA graph ({error}); use --training.no-cuda-graph"
            ) from error


@contextmanager
def training_step(
    config: Config,
    learner: Learner,
    batches: Batches,
    placement: Placement,
    stages: Stages,
    ranks: Ranks,
    rows: int,
) -> Iterator[Step | ReplayedStep]:
    """Return the step that trains; a graph's memory is free after the block.

    Args:
        config: The run's settings.
        learner: What it changes.
        batches: Compute the features.
        placement: Where it runs.
        stages: Count its time.
        ranks: The processes that train together.
        rows: Rows of the batches to replay, where graphs are used.
    """
    several = ranks.count > 1
    trained = DistributedDataParallel(learner.model) if several else learner.model
    step = Step(config.training, learner, trained, batches, placement, stages)
    if not uses_graphs(config, placement, ranks):
        yield step
        return
    graph = CudaGraph()
    try:
        yield ReplayedStep(step, rows, graph)
    finally:
        graph.free()


def late(items: Iterable[_T], *, by: int) -> Iterator[_T]:
    """Yield the items, each after as many more were made as `by` says."""
    waiting: deque[_T] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > by:
            yield waiting.popleft()
    yield from waiting


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, pull: float | Tensor) -> None:
    """Move the average of a model's parameters towards them.

    Args:
        average: A model of the same sizes; its parameters are changed in place.
        model: The model.
        pull: The share of the model's parameters, 1 − decay; a scalar tensor is read on its device.
    """
    averages: list[Tensor] = list(average.parameters())
    weights: list[Tensor] = list(model.parameters())
    if isinstance(pull, Tensor):
        ways = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(ways, pull)
        torch._foreach_add_(averages, ways)
    else:
        torch._foreach_lerp_(averages, weights, pull)


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors of a batch's inputs, in their order."""
    if isinstance(values, tuple):
        return [tensor for value in values for tensor in _tensors(value)]
    return [] if values is None else [values]
