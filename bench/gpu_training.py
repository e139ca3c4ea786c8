"""The stage of a GPU's record that needs all of the package: a training step and a fold's epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import Config, FeatureConfig, ModelConfig
from ast_fast_kernels import FbankConfig, fbank, use_backend
from bench.gpu_timer import Candidates, Recorder, captured, tf32_allowed

TRITON = {"attention": "triton", "layer_norm": "triton", "gelu": "triton"}
PLAIN = {"attention": "sdpa", "layer_norm": "reference", "gelu": "reference"}
NUM_CLASSES = 50


class Training:
    """A model and its optimiser; one CUDA graph can capture the whole step."""

    def __init__(
        self, recorder: Recorder, build: Callable[[Config], torch.nn.Module], **backends: str
    ) -> None:
        sizes = recorder.sizes
        config = Config(
            model=replace(ModelConfig(), **dict(sizes.model)),
            fbank=FbankConfig(num_mel_bins=sizes.mel_bins),
            features=FeatureConfig(target_frames=sizes.frames),
        )
        self.model = build(config).to(recorder.device)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, fused=recorder.on_gpu, capturable=recorder.on_gpu
        )
        self.features = recorder.noise(sizes.batch, sizes.frames, sizes.mel_bins)
        self.targets = torch.arange(sizes.batch, device=recorder.device) % NUM_CLASSES
        self.backends, self.device = backends, recorder.device

    def step(self) -> Tensor:
        """Run forward, backward and update, with matrix products in bfloat16."""
        with use_backend(**self.backends), torch.autocast(self.device.type, dtype=torch.bfloat16):
            out = self.model(self.features)
            logits = out if isinstance(out, Tensor) else out.logits
        loss = torch.nn.functional.cross_entropy(logits.float(), self.targets)
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def _model(config: Config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AudioSpectrogramTransformer.of(config, NUM_CLASSES)


def measure_training(recorder: Recorder) -> None:
    """Compare a training step, and a fold's epoch from int16 clips, with and without graphs."""
    with tf32_allowed():
        trainings = {
            "triton": Training(recorder, _model, **TRITON),
            "torch": Training(recorder, _model, **PLAIN),
        }
        with recorder.step("transformers"):
            if find_spec("transformers") is not None:
                from bench.bench_step import peer_model

                trainings["transformers"] = Training(recorder, peer_model)
        steps: Candidates = {name: training.step for name, training in trainings.items()}
        clips = recorder.sizes.batch
        recorder.compare("training step", dict(steps), graphs=False, clips=clips)
        if recorder.on_gpu:
            graphs: Candidates = {}
            for name, step in steps.items():
                with recorder.step(f"training step of {name} in a graph"):
                    graphs[f"{name}, graph"] = captured(step)
            recorder.compare("training step in a graph", dict(graphs), graphs=False, clips=clips)
            steps |= graphs
        _measure_epoch(recorder, trainings, steps)


def _measure_epoch(recorder: Recorder, trainings: dict[str, Training], steps: Candidates) -> None:
    sizes, config = recorder.sizes, FbankConfig(num_mel_bins=recorder.sizes.mel_bins)
    samples = (3000 * recorder.noise(sizes.batch, sizes.clip_samples)).to(torch.int16)

    def epoch(name: str) -> None:
        backend = "triton" if name.startswith("triton") else "reference"
        features = trainings[name.partition(",")[0]].features
        for _ in range(sizes.steps):
            log_mel = fbank(samples, config, backend=backend)[:, : features.shape[1]]
            features[:, : log_mel.shape[1]] = log_mel
            steps[name]()

    runs: Candidates = {name: partial(epoch, name) for name in steps}
    recorder.compare("fold's epoch", runs, graphs=False, part=5, clips=sizes.batch * sizes.steps)
