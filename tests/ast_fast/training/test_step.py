"""A replayed step: what a CUDA graph would do, done on the CPU operator by operator."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ast_fast.machine.device import Placement
from ast_fast.machine.distributed import Ranks
from ast_fast.machine.graphs import CaptureError, HostCopy
from ast_fast.settings.config import Config, FeatureConfig
from ast_fast.training.fold import DivergedError, train_fold
from ast_fast.training.schedule import clip_losses
from ast_fast.training.step import WARM_UP_STEPS, late, uses_graphs
from ast_fast_kernels import use_backend
from ast_fast_kernels.errors import InputError
from tests.ast_fast.training.test_fold import (
    ADAMW,
    CPU,
    SMALL,
    Killer,
    Recorder,
    assert_same_training,
    assert_same_weights,
    fake_dataset,
)

aten = torch.ops.aten

NEEDS_THE_HOST = {
    *(aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero),
    *(aten._unique2, aten.lift_fresh),
}
"""What waits for the device, or brings data of the host to it, as `torch.tensor` does."""

SCATTERS = {
    *(aten.scatter.src, aten.scatter_.src, aten.scatter_add.default, aten.scatter_add_.default),
}
"""What torch's deterministic algorithms compute on a GPU with strides that they copy from the host,
in some of its versions: the gradients of `topk`, `sort` and `gather` are such."""


class Call:
    """One operator's call, on the tensors and with the numbers that it was captured with."""

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any):
        self._run = functools.partial(function, *args, **kwargs)
        given = {place_of(tensor) for tensor in tensors_in((args, kwargs))}
        self._out = [None if place_of(t) in given else t for t in tensors_in(out)]

    def again(self) -> None:
        """Run it again: what it made in memory of its own then is made there now."""
        for place, value in zip(self._out, tensors_in(self._run()), strict=True):
            if place is not None:
                place.copy_(value)


class Capture(TorchDispatchMode):
    """Keep every operator's call, and what the tensors it writes to held before."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.made: dict[int, Tensor] = {}
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        masks = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            tensor.dtype == torch.bool for tensor in tensors_in(args[1])
        )
        if masks or function.overloadpacket in NEEDS_THE_HOST or function in SCATTERS:
            raise RuntimeError(f"{function} is not permitted when stream is capturing")
        assert function.namespace != "ast_fast", "an operator of ours hides what it calls"
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(tensors_in(value))
        self._keep(tensors_in(kwargs.get("out")))
        out = function(*args, **kwargs)
        known = {place_of(tensor) for tensor in tensors_in((args, kwargs))}
        for tensor in tensors_in(out):
            if place_of(tensor) not in known:
                self.made.setdefault(place_of(tensor), tensor)
        self.calls.append(Call(function, args, kwargs, out))
        return out

    def undo(self) -> None:
        """Leave everything as if nothing had run; what was made holds NaN, and no index."""
        for memory, before in self._before.values():
            memory.copy_(before)
        for tensor in self.made.values():
            bytes_of(tensor).fill_(0xFF)

    def _keep(self, written: list[Tensor]) -> None:
        for tensor in written:
            place = place_of(tensor)
            if place not in self.made and place not in self._before:
                memory = bytes_of(tensor)
                self._before[place] = memory, memory.clone()


class RecordedGraph:
    """Stands for `CudaGraph`: a capture leaves no trace, and a replay is of exactly its calls."""

    def __init__(self) -> None:
        self.num_warm = self.captures = self.replays = 0
        self.is_free = False
        self._calls: list[Call] = []

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        self.num_warm += 1
        yield

    def capture(self, run: Callable[[], Any]) -> Any:
        self.captures += 1
        random = torch.get_rng_state()
        capture = Capture()
        try:
            with capture:
                result = run()
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        torch.set_rng_state(random)
        capture.undo()
        self._calls = capture.calls
        return result

    def replay(self) -> None:
        self.replays += 1
        with torch._C._AutoDispatchBelowAutograd():
            for call in self._calls:
                call.again()

    def free(self) -> None:
        self.is_free = True
        self._calls.clear()


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def place_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def bytes_of(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RecordedGraph]]:
    """Train on the CPU as on a GPU, all by torch's operators; return the graphs that are made."""
    made: list[RecordedGraph] = []

    def graph() -> RecordedGraph:
        made.append(RecordedGraph())
        return made[-1]

    monkeypatch.setattr("ast_fast.training.step.CudaGraph", graph)
    for module in ("step", "fold"):
        monkeypatch.setattr(f"ast_fast.training.{module}.is_capturable", lambda placement: True)
    # Indices on a GPU are not looked at by the host.
    monkeypatch.setattr("ast_fast_kernels.mix.api._check_terms", lambda *arguments: None)
    # A mode of dispatch looks like tracing, for which our functions call operators of their own.
    monkeypatch.setattr("ast_fast_kernels._torch.checks.is_traced", lambda *tensors: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with use_backend("reference"):
        yield made
    torch.set_num_threads(threads)


def with_training(config: Config, **changes: Any) -> Config:
    return replace(config, training=replace(config.training, **changes))


LONGER = with_training(SMALL, epochs=5)
"""Twenty clips: two batches of eight and one of four an epoch."""
REPLAYS = 2 * 5 - WARM_UP_STEPS

CONFIGS = {
    "muon": LONGER,
    "adamw": with_training(ADAMW, epochs=5),
    "plain": with_training(LONGER, ema_decay=0.0, clip_grad_norm=0.0, label_smoothing=0.0),
    "bfloat16": with_training(LONGER, amp="bfloat16"),
    "dither": replace(LONGER, fbank=SMALL.fbank.replace(dither=1.0)),
    "statistics": replace(LONGER, features=FeatureConfig(norm_per_sample=False, target_frames=32)),
    "more-augmentation": replace(
        LONGER, augment=replace(SMALL.augment, mix_probability=1.0, filter_db=6.0)
    ),
    "presence": with_training(LONGER, loss="presence", label_smoothing=0.0),
    "strongest": replace(
        LONGER, model=replace(SMALL.model, pool="strongest", stochastic_depth=0.3)
    ),
    "speeds": replace(
        LONGER, augment=replace(SMALL.augment, mix_probability=1.0, speeds=(0.8, 1.25))
    ),
    "cutmix": replace(LONGER, augment=replace(SMALL.augment, cutmix_probability=0.5)),
    "unmixed-end": replace(
        LONGER,
        augment=replace(
            SMALL.augment, mix_probability=1.0, cutmix_probability=1.0, unmixed_share=0.4
        ),
    ),
    "class-token": replace(LONGER, model=replace(SMALL.model, pool="cls", stem_widths=())),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fold_replayed_is_one_that_is_not_to_the_bit(graphs, tmp_path, name):
    """Rates, the average's decay, mixtures, masks, patches and dropout change with every step."""
    config = CONFIGS[name]
    result = train_fold(config, fake_dataset(), 1, tmp_path / "replayed")
    (graph,) = graphs
    assert (graph.num_warm, graph.captures, graph.replays) == (WARM_UP_STEPS, 1, REPLAYS)
    assert graph.is_free
    eager = with_training(config, cuda_graph=False)
    expected = train_fold(eager, fake_dataset(), 1, tmp_path / "eager")
    assert len(graphs) == 1
    assert_same_training(result, expected)
    assert_same_weights(tmp_path / "replayed", tmp_path / "eager")


def test_overflows_of_half_precision_are_skipped_in_replays(graphs, tmp_path, monkeypatch):
    """The scale rises after every second step, and most steps that it rises in overflow."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**20, growth_interval=2)
    monkeypatch.setattr("torch.amp.GradScaler", scaler)
    skipped = []
    update = torch.optim.AdamW.step

    def watched(self, *arguments):
        skipped.append(bool(self.found_inf))
        update(self, *arguments)

    half = Placement(CPU, torch.float16)
    config = with_training(LONGER, amp="float16", epochs=8)
    result = train_fold(config, fake_dataset(), 1, tmp_path / "replayed", placement=half)
    eager = with_training(config, cuda_graph=False)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    expected = train_fold(eager, fake_dataset(), 1, tmp_path / "eager", placement=half)
    replays = [index for index in range(24) if index % 3 < 2][WARM_UP_STEPS:]
    assert {skipped[index] for index in replays} == {False, True}
    assert graphs[0].replays == len(replays)
    assert_same_training(result, expected)
    assert_same_weights(tmp_path / "replayed", tmp_path / "eager")


@pytest.mark.parametrize("killer", [Killer(2, 1), Killer(3), Killer(4, 2)])
def test_a_replayed_fold_is_captured_again_when_it_is_resumed(graphs, tmp_path, killer):
    expected = train_fold(LONGER, fake_dataset(), 1, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_fold(LONGER, fake_dataset(), 1, tmp_path / "killed", observers=[killer])
    resumed = with_training(replace(LONGER, resume=True), cuda_graph=killer.at != (3, None))
    result = train_fold(resumed, fake_dataset(), 1, tmp_path / "killed")
    assert_same_training(result, expected)
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert all(graph.is_free for graph in graphs)


def test_observers_hear_of_replayed_steps_in_order(graphs, tmp_path):
    heard = []
    for used in (True, False):
        recorder = Recorder()
        config = with_training(LONGER, cuda_graph=used)
        train_fold(config, fake_dataset(), 1, tmp_path / str(used), observers=[recorder])
        heard.append(recorder.events)
    assert heard[0] == heard[1]


def test_a_replayed_step_that_diverges_is_the_one_named(graphs, tmp_path, monkeypatch):
    """Its loss is read after the next step was started."""
    monkeypatch.setattr(
        "ast_fast.training.fold.learning_rate", lambda step, *given: 1e-3 if step < 6 else 1e30
    )
    said = []
    for used in (True, False):
        config = with_training(LONGER, cuda_graph=used, clip_grad_norm=0.0)
        with pytest.raises(DivergedError) as caught:
            train_fold(config, fake_dataset(), 1, tmp_path / str(used))
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "at epoch 3, step 2;" in said[0]
    assert graphs[0].replays > 0
    assert graphs[0].is_free


def frozen_numbers(self, rate, decay):
    self._rate, self._pull = rate, 1 - decay


@pytest.mark.parametrize(
    ("name", "change"),
    [("Step.set", frozen_numbers), ("_tensors", lambda inputs: [])],
    ids=["rate-and-decay", "inputs"],
)
def test_what_a_capture_froze_would_show(graphs, tmp_path, monkeypatch, name, change):
    expected = train_fold(LONGER, fake_dataset(), 1, tmp_path / "right")
    monkeypatch.setattr(f"ast_fast.training.step.{name}", change)
    result = train_fold(LONGER, fake_dataset(), 1, tmp_path / "frozen")
    losses = [[row.train_loss for row in fold.history] for fold in (result, expected)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][2] != pytest.approx(losses[1][2], rel=1e-6)


@pytest.mark.parametrize(
    ("wait", "operator"),
    [
        (lambda losses: losses * losses.sum().item(), "_local_scalar_dense"),
        (lambda losses: losses * torch.tensor([1.0]), "lift_fresh"),
        (lambda losses: losses[losses > 0], r"aten\.index"),
    ],
    ids=["reads-a-number", "brings-a-number", "counts"],
)
def test_a_step_that_waits_for_the_host_is_no_graph(graphs, tmp_path, monkeypatch, wait, operator):
    losses = clip_losses
    monkeypatch.setattr("ast_fast.training.step.clip_losses", lambda *given: wait(losses(*given)))
    message = (
        r"training.cuda_graph must be off with these settings: a step of theirs cannot be captured "
        rf"as a CUDA graph \(.*{operator}.*\); use --training.no-cuda-graph"
    )
    with pytest.raises(InputError, match=message):
        train_fold(LONGER, fake_dataset(), 1, tmp_path)
    assert graphs[0].is_free


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_fold_too_short_for_a_capture_is_trained(graphs, tmp_path, count):
    config = with_training(LONGER, batch_size=1000, epochs=WARM_UP_STEPS - 1 + count)
    result = train_fold(config, fake_dataset(), 1, tmp_path)
    (graph,) = graphs
    assert (graph.captures, graph.replays) == (min(1, max(0, count - 1)), max(0, count - 1))
    assert len(result.history) == WARM_UP_STEPS - 1 + count


@pytest.mark.parametrize("name", ["muon", "speeds", "presence"])
def test_steps_for_a_graph_follow_the_curve_of_those_of_the_cpu(
    graphs, tmp_path, monkeypatch, name
):
    """They round otherwise: rates in float32, Muon's matrices several at once. And their clips are
    copied, batch by batch, where those of the CPU are read in place."""
    config = CONFIGS[name]
    result = train_fold(config, fake_dataset(), 1, tmp_path / "as-on-a-gpu")
    monkeypatch.setattr("ast_fast.training.optimiser.multiplies_bfloat16", lambda _: False)
    for module in ("step", "fold"):
        monkeypatch.setattr(f"ast_fast.training.{module}.is_capturable", lambda placement: False)
    expected = train_fold(config, fake_dataset(), 1, tmp_path / "as-on-a-cpu")
    for one, other in zip(result.history, expected.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert one.test_loss == pytest.approx(other.test_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("device", "is_on", "count", "used"),
    [
        ("cuda", True, 1, True),
        ("cuda", False, 1, False),
        ("cuda", True, 2, False),
        ("cpu", True, 1, False),
    ],
)
def test_graphs_are_for_one_process_on_a_gpu(device, is_on, count, used):
    config = with_training(SMALL, cuda_graph=is_on)
    assert uses_graphs(config, Placement(torch.device(device), None), Ranks(0, count)) == used


@pytest.mark.parametrize(
    ("by", "expected"), [(0, "a1b2c3"), (1, "ab1c23"), (2, "abc123"), (5, "abc123")]
)
def test_items_come_late_by_as_many_as_asked_for(by, expected):
    order: list[str] = []

    def made() -> Iterator[int]:
        for number, letter in enumerate("abc", start=1):
            order.append(letter)
            yield number

    for number in late(made(), by=by):
        order += str(number)
    assert "".join(order) == expected


def test_a_copy_for_the_host_holds_what_was_there():
    values = torch.tensor([1.5, 2.0], dtype=torch.float64)
    copy = HostCopy(values)
    values.zero_()
    assert copy.read() == [1.5, 2.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("amp", ["off", "bfloat16", "float16"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "bfloat16"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_fold_replayed_on_a_gpu_is_one_that_is_not_to_the_bit(tmp_path, name, amp, backend):
    config = with_training(replace(CONFIGS[name], device="cuda"), amp=amp)
    with use_backend(backend):
        result = train_fold(config, fake_dataset(), 1, tmp_path / "replayed")
        eager = with_training(config, cuda_graph=False)
        expected = train_fold(eager, fake_dataset(), 1, tmp_path / "eager")
    assert_same_training(result, expected)
    assert_same_weights(tmp_path / "replayed", tmp_path / "eager")
