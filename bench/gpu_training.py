"""The stage of a GPU's record that needs all of the package: a training step, and a whole fold.

Both are as `cv` runs them at its default settings, features included, by our kernels and by plain
torch's; on a GPU as a CUDA graph too. A fold has few epochs and is tested after each; its last
epoch is training alone, as history.csv counts it. transformers' AST drops no patches and is given
its features, so it stands beside steps that drop none either.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ast_fast.data.dataset import Dataset
from ast_fast.machine.device import Placement, deterministic_algorithms
from ast_fast.machine.distributed import ALONE
from ast_fast.machine.timing import Stages
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import Config, FeatureConfig, ModelConfig, TrainingConfig
from ast_fast.training.batches import Batches
from ast_fast.training.fold import train_fold
from ast_fast.training.step import WARM_UP_STEPS, Learner, is_capturable, training_step
from ast_fast_kernels import FbankConfig, use_backend
from bench.bench_fold import data_of
from bench.gpu_timer import Candidates, Recorder, captured, spread

OPERATIONS = ("fbank", "attention", "layer_norm", "gelu")
BACKENDS = {
    "triton": dict.fromkeys(OPERATIONS, "triton"),
    "torch": dict.fromkeys(OPERATIONS, "reference") | {"attention": "sdpa"},
}


def measure_training(recorder: Recorder) -> None:
    """Compare training steps and folds; those without graphs first, should a graph end it all."""
    sizes, placement = recorder.sizes, Placement(recorder.device, torch.bfloat16)
    config = Config(
        model=replace(ModelConfig(), **dict(sizes.model)),
        fbank=FbankConfig(num_mel_bins=sizes.mel_bins),
        features=FeatureConfig(target_frames=sizes.frames),
        training=replace(TrainingConfig(), batch_size=sizes.batch, epochs=sizes.epochs),
    )
    # Three of four folds are whole batches: a graph replays all of them.
    shape = 4 * -(-sizes.steps // 3) * sizes.batch, sizes.clip_samples
    dataset = data_of(np.random.default_rng(0).integers(-3000, 3000, shape, np.int16))
    clips = int((dataset.folds != 1).sum())
    all_patches = replace(config, augment=replace(config.augment, patch_drop=0.0))
    last_epochs: dict[str, list[float]] = defaultdict(list)

    def steps(config: Config, graph: bool) -> Candidates:
        config, suffix = _with(config, graph), ", graph" * graph
        found: Candidates = {
            name + suffix: partial(next, _steps(config, dataset, placement, backends))
            for name, backends in BACKENDS.items()
        }
        if config.augment.patch_drop == 0 and find_spec("transformers") is not None:
            found["transformers" + suffix] = partial(next, _peer_steps(recorder, config, graph))
        return found

    def folds(graph: bool) -> Candidates:
        own, suffix = _with(config, graph), ", graph" * graph
        return {
            name + suffix: partial(
                _train, own, dataset, placement, backends, last_epochs[name + suffix]
            )
            for name, backends in BACKENDS.items()
        }

    compare = partial(recorder.compare, graphs=False)
    for name, own in (("training step", config), ("training step of all patches", all_patches)):
        compare(name, steps(own, False), clips=sizes.batch)
        if recorder.on_gpu:
            both = steps(own, False) | steps(own, True)
            compare(f"{name}, with graphs too", both, clips=sizes.batch)
    runs = folds(False) | (folds(True) if recorder.on_gpu else {})
    compare("fold", runs, part=10, clips=clips * sizes.epochs)
    called = {name: spread(seconds) for name, seconds in last_epochs.items() if seconds}
    row = {"cannot": {}, "clips": clips, "called": called}
    recorder.file.keep("times", "fold's last epoch", row)


def _with(config: Config, graph: bool) -> Config:
    return replace(config, training=replace(config.training, cuda_graph=graph))


def _steps(
    config: Config, dataset: Dataset, placement: Placement, backends: dict[str, str]
) -> Iterator[list[float]]:
    """Take a step on the same clips each time; yield its results."""
    torch.manual_seed(0)
    device, rows = placement.device, config.training.batch_size
    model = AudioSpectrogramTransformer.of(config, len(dataset.class_names)).to(device)
    learner = Learner.of(model, config.training, placement)
    batches = Batches(config, dataset, None, device, capturable=is_capturable(placement))
    _, inputs = next(batches.of_epoch(np.arange(rows), torch.Generator().manual_seed(0), ALONE))
    with training_step(config, learner, batches, placement, Stages(), ALONE, rows) as step:
        not_captured = WARM_UP_STEPS if config.training.cuda_graph else 0
        for number in itertools.count():
            with use_backend(**backends), deterministic_algorithms(device):
                results = step(inputs, 1 / rows, 1e-4, 0.99).values.read()
            if number >= not_captured:
                yield results


def _peer_steps(recorder: Recorder, config: Config, graph: bool) -> Iterator[object]:
    """Take a step of transformers' model with AdamW, in a graph or not; yield its loss."""
    from bench.bench_step import NUM_CLASSES, peer_model

    model, sizes = peer_model(config).to(recorder.device), recorder.sizes
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, fused=recorder.on_gpu, capturable=recorder.on_gpu
    )
    features = recorder.noise(sizes.batch, sizes.frames, sizes.mel_bins)
    targets = torch.arange(sizes.batch, device=recorder.device) % NUM_CLASSES

    def step() -> torch.Tensor:
        with torch.autocast(recorder.device.type, dtype=torch.bfloat16):
            logits = model(features).logits
        loss = torch.nn.functional.cross_entropy(logits.float(), targets)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        return loss.detach()

    run = captured(step) if graph else step
    while True:
        yield run()


def _train(
    config: Config,
    dataset: Dataset,
    placement: Placement,
    backends: dict[str, str],
    seconds: list[float],
) -> None:
    """Train a fold; append the seconds of its last epoch's steps."""
    with TemporaryDirectory() as folder, use_backend(**backends):
        result = train_fold(config, dataset, 1, Path(folder), placement=placement)
    seconds.append(result.history[-1].seconds)
