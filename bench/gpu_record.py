"""Record all results that need a GPU in one command: tests, errors, times; one JSON and a table.

`python -m bench.gpu_record` (or `make gpu-record`) needs a CUDA machine, the installed package and
pytest. The tests come last, because compiling makes them long. Candidates take turns, and a time is
the median of CUDA events. A candidate is timed twice: as it is called, with the host's part; and as
one of many calls in a CUDA graph, which leaves the device's part only.

`--tiny` runs the same steps on toy sizes in Triton's interpreter, so that their logic can be tested
anywhere. Its times come from the clock, mean nothing and are marked so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ast_fast.settings.config import Config, FeatureConfig, ModelConfig
from ast_fast_kernels import (
    FbankConfig,
    add_layer_norm,
    attention,
    fbank,
    linear_gelu,
    use_backend,
)
from ast_fast_kernels.testing.budgets import log_mel_error, relative_norm
from bench.bench_step import logits_of, peer_model, small_model
from bench.gpu_peers import fbank_peers

ROOT = Path(__file__).parents[1]
MOST_PROCESSES = 16
"""Most processes that run tests at a time: each holds a CUDA context."""
CALLS_IN_A_GRAPH = 20
"""Calls of a candidate in a graph: enough to make the graph's own launch a small part."""
NO_GRAPH = ("clip by clip", "torch eager", "torchaudio kaldi")
"""Parts of candidates' names: these make tables on the host at each call, which no graph takes."""
Candidates = dict[str, Callable[[], object]]
TRITON = {"attention": "triton", "layer_norm": "triton", "gelu": "triton"}
PLAIN = {"attention": "sdpa", "layer_norm": "reference", "gelu": "reference"}


@dataclass(frozen=True)
class Sizes:
    """The sizes to run: ESC-50's own, or toys."""

    attention: tuple[tuple[int, int, int, int], ...]  # (batch, tokens, heads, head_dim)
    rows: int
    width: int
    clips: tuple[int, ...]
    clip_samples: int
    model: ModelConfig
    frames: int
    mel_bins: int
    batch: int
    steps: int  # of a fold's epoch
    rounds: int


FULL = Sizes(
    attention=(
        (32, 128, 4, 32), (32, 256, 4, 32), (32, 250, 3, 64), (32, 512, 12, 64), (8, 600, 12, 64),
        (8, 1212, 12, 64),
    ),
    rows=8000, width=192, clips=(1, 64, 1024), clip_samples=80000, model=ModelConfig(), frames=512,
    mel_bins=128, batch=32, steps=50, rounds=30,
)  # fmt: skip
TINY = Sizes(
    attention=((1, 17, 2, 16),),
    rows=5, width=32, clips=(2,), clip_samples=2000, model=ModelConfig(embed_dim=32, num_heads=2,
    depth=1), frames=32, mel_bins=32, batch=2, steps=2, rounds=5,
)  # fmt: skip


class Recorder:
    """Records the figures of every step on a device, by name."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.record: dict[str, Any] = {"errors": {}, "times": {}}

    def noise(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device, dtype)

    def check(self, name: str, error: float, bound: float) -> None:
        """Record an error, and whether it is within its bound."""
        self.record["errors"][name] = {"error": error, "bound": bound, "holds": error <= bound}

    def compare(
        self,
        name: str,
        candidates: Candidates,
        *,
        graphs: bool = True,
        part: int = 1,
        **facts: float,
    ) -> None:
        """Time candidates in turns; record the error of one that cannot run.

        Args:
            name: Of the comparison.
            candidates: Functions to call, by name.
            graphs: Whether to time them in CUDA graphs too.
            part: Divides the number of rounds, for candidates that take long.
            facts: Recorded beside the times.
        """
        cannot = {}
        for candidate, run in list(candidates.items()):
            try:
                for _ in range(2):
                    run()
                self.wait()
            except Exception as error:  # such as a backend of SDPA that does not take the shape
                if candidate.startswith("triton"):
                    raise
                cannot[candidate] = str(error).splitlines()[0]
                del candidates[candidate]
        row: dict[str, Any] = {"seconds": self.medians(candidates, part), "cannot": cannot, **facts}
        if self.device.type == "cuda" and graphs:
            replays: Candidates = {}
            for candidate, run in candidates.items():
                if name.startswith("fbank") and any(part in candidate for part in NO_GRAPH):
                    continue
                try:
                    replays[candidate] = captured(run, CALLS_IN_A_GRAPH)
                except Exception as error:
                    if candidate.startswith("triton"):
                        raise
                    cannot[f"{candidate}, in a graph"] = str(error).splitlines()[0]
            medians = self.medians(replays)
            row["graph_seconds"] = {name: s / CALLS_IN_A_GRAPH for name, s in medians.items()}
        self.record["times"][name] = row

    def medians(self, candidates: Candidates, part: int = 1) -> dict[str, float]:
        """Return the median of each candidate's times, taken in turns."""
        seconds: dict[str, list[float]] = {candidate: [] for candidate in candidates}
        for _ in range(self.sizes.rounds // part):
            for candidate, run in candidates.items():
                seconds[candidate].append(self.seconds(run))
        return {candidate: statistics.median(times) for candidate, times in seconds.items()}

    def seconds(self, run: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            begin = time.perf_counter()
            run()
            return time.perf_counter() - begin
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def captured(run: Callable[[], object], calls: int = 1) -> Callable[[], object]:
    """Return the replay of a CUDA graph of `calls` calls."""
    here, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(here)
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    here.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(here), torch.cuda.graph(graph):  # restores it after a failed capture
        for _ in range(calls):
            run()
    return graph.replay


def _gelu(x: Tensor, bias: Tensor, *, backend: str) -> Tensor:
    """Run bias and GELU alone: a matrix product before them would hide their error."""
    import ast_fast_kernels.gelu.triton_gpu  # noqa: F401 - registers the operator

    if backend == "triton":
        hidden: Tensor = torch.ops.ast_fast.bias_gelu_fwd(x, bias)
        return hidden
    return torch.nn.functional.gelu(x + bias)


def check_kernels(recorder: Recorder) -> None:
    """Check every kernel against float64, forward and backward."""
    sizes = recorder.sizes
    for shape in sizes.attention:
        batch, tokens, *heads = shape
        for dtype, bound in ((torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)):
            qkv = recorder.noise(min(batch, 2), tokens, 3, *heads, dtype=dtype).requires_grad_()
            exact = qkv.detach().double().requires_grad_()
            out, expected = (
                attention(x, backend=backend)
                for x, backend in ((qkv, "triton"), (exact, "reference"))
            )
            grad = recorder.noise(*out.shape, dtype=dtype, seed=1)
            gradient = torch.autograd.grad(out, qkv, grad)[0]
            true = torch.autograd.grad(expected, exact, grad.double())[0]
            name = f"attention {shape} {dtype}"
            recorder.check(f"{name} forward", relative_norm(out, expected), bound)
            recorder.check(f"{name} backward", relative_norm(gradient, true), 2 * bound)

    tensors = [recorder.noise(sizes.rows, sizes.width, seed=seed) for seed in (0, 1)]
    weights = [recorder.noise(sizes.width, seed=seed) for seed in (2, 3)]
    for name, run, inputs in (
        ("layer norm", add_layer_norm, [*tensors, *weights]),
        ("gelu", _gelu, [tensors[0], weights[0]]),
    ):
        leaves = [x.clone().requires_grad_() for x in inputs]
        exact_leaves = [x.double().requires_grad_() for x in inputs]
        out, expected = run(*leaves, backend="triton"), run(*exact_leaves, backend="reference")
        if isinstance(out, tuple):
            out, expected = out[1], expected[1]
        bound = 1e-6 if name == "gelu" else 1e-5
        recorder.check(f"{name} forward", relative_norm(out, expected), bound)
        grads = torch.autograd.grad(out.square().sum(), leaves)
        true_grads = torch.autograd.grad(expected.square().sum(), exact_leaves)
        worst = max(map(relative_norm, grads, true_grads))
        recorder.check(f"{name} backward", worst, 4 * bound)

    for preset in ("ast", "whisper"):
        config = FbankConfig.preset(preset).replace(top_db=0.0, log_type="ln", output_scale=1.0)
        config = config.replace(output_shift=0.0)
        waveform = 0.1 * recorder.noise(2, sizes.clip_samples)
        out = fbank(waveform, config, backend="triton")
        errors = log_mel_error(out, fbank(waveform.double(), config, backend="reference"))
        recorder.check(f"fbank {preset}", errors.max().item(), 3e-4)


def measure_fbank(recorder: Recorder) -> None:
    """Compare the filterbank with other libraries on the GPU."""
    for clips in recorder.sizes.clips:
        _measure_fbank(recorder, clips)


def _measure_fbank(recorder: Recorder, clips: int) -> None:
    config, num_samples = FbankConfig(), recorder.sizes.clip_samples
    waveform = 0.1 * recorder.noise(clips, num_samples)
    samples = (waveform.clamp(-1, 1) * 32767).to(torch.int16)
    reference = partial(fbank, config=config, backend="reference")
    candidates: Candidates = {
        "triton": partial(fbank, waveform, config, backend="triton"),
        "triton, int16": partial(fbank, samples, config, backend="triton"),
        "torch eager": partial(reference, waveform),
    }
    if recorder.device.type == "cuda" and clips == 64:  # one compilation takes half a minute
        from ast_fast_kernels.fbank.reference import fbank_reference

        compiled = torch.compile(fbank_reference)
        candidates["torch.compile"] = partial(compiled, waveform, config)
    if clips <= 64:  # a thousand calls a round would show nothing more
        candidates["torch eager, clip by clip"] = lambda: [reference(clip) for clip in waveform]
    candidates |= {
        name: run
        for name, run in fbank_peers(waveform).items()
        if clips <= 64 or "clip by clip" not in name
    }
    moved = waveform.numel() * 4 + clips * config.num_frames(num_samples) * 128 * 4
    recorder.compare(f"fbank, {clips} clips", candidates, clips=clips, bytes=moved)


def measure_attention(recorder: Recorder) -> None:
    """Compare attention with each of SDPA's kernels, from the same packed projections."""
    backends = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }
    for shape in recorder.sizes.attention:
        batch, tokens, heads, head_dim = shape
        qkv = recorder.noise(batch, tokens, 3, heads, head_dim, dtype=torch.bfloat16)
        leaf = qkv.clone().requires_grad_()
        grad = recorder.noise(batch, tokens, heads, head_dim, dtype=torch.bfloat16, seed=1)

        def forward(backend: str, qkv: Tensor = qkv) -> Tensor:
            with torch.no_grad():
                return attention(qkv, backend=backend)

        def both(backend: str, leaf: Tensor = leaf, grad: Tensor = grad) -> Tensor:
            return torch.autograd.grad(attention(leaf, backend=backend), leaf, grad)[0]

        def chosen(run: Callable[[str], Tensor], kind: SDPBackend) -> Tensor:
            with sdpa_kernel(kind):
                return run("sdpa")

        operations = 4 * batch * heads * tokens**2 * head_dim
        for name, run, times in (("forward", forward, 1.0), ("forward and backward", both, 3.5)):
            candidates: Candidates = {"triton": partial(run, "triton")}
            candidates |= {
                kind: partial(chosen, run, backend) for kind, backend in backends.items()
            }
            recorder.compare(f"attention {shape} {name}", candidates, operations=operations * times)


def measure_block(recorder: Recorder) -> None:
    """Compare the operations between a block's matrix products, forward and backward."""
    sizes = recorder.sizes
    tokens = recorder.noise(sizes.rows, sizes.width).requires_grad_()
    update = recorder.noise(sizes.rows, sizes.width, dtype=torch.bfloat16, seed=1).requires_grad_()
    weight, bias = (recorder.noise(sizes.width, seed=s).requires_grad_() for s in (2, 3))
    expansion = recorder.noise(4 * sizes.width, sizes.width, seed=4).requires_grad_()
    shift = recorder.noise(4 * sizes.width, seed=5).requires_grad_()

    def normalise(backend: str) -> object:
        results = add_layer_norm(tokens, update, weight, bias, backend=backend)
        return torch.autograd.grad([r.sum() for r in results], (tokens, update, weight, bias))

    def activate(backend: str) -> object:
        with torch.autocast(recorder.device.type, dtype=torch.bfloat16):
            hidden = linear_gelu(tokens, expansion, shift, backend=backend)
        return torch.autograd.grad(hidden.sum(), (tokens, expansion, shift))

    for name, run in (("add_layer_norm", normalise), ("linear_gelu", activate)):
        candidates: Candidates = {
            "triton": partial(run, "triton"),
            "torch eager": partial(run, "reference"),
        }
        recorder.compare(f"{name} forward and backward", candidates)


class Training:
    """A model and its optimiser; one CUDA graph can capture the whole step."""

    def __init__(
        self, recorder: Recorder, build: Callable[[Config], torch.nn.Module], **backends: str
    ) -> None:
        sizes = recorder.sizes
        self.model = build(
            Config(
                model=sizes.model,
                fbank=FbankConfig(num_mel_bins=sizes.mel_bins),
                features=FeatureConfig(target_frames=sizes.frames),
            )
        ).to(recorder.device)
        on_gpu = recorder.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-4, fused=on_gpu, capturable=on_gpu
        )
        self.features = recorder.noise(sizes.batch, sizes.frames, sizes.mel_bins)
        self.targets = torch.arange(sizes.batch, device=recorder.device) % 50
        self.backends, self.device = backends, recorder.device

    def step(self) -> Tensor:
        """Run forward, backward and update, with matrix products in bfloat16."""
        with use_backend(**self.backends), torch.autocast(self.device.type, dtype=torch.bfloat16):
            logits = logits_of(self.model(self.features))
        loss = torch.nn.functional.cross_entropy(logits.float(), self.targets)
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def measure_training(recorder: Recorder) -> None:
    """Compare a training step, and a fold's epoch from int16 clips, with and without graphs."""
    sizes, config = recorder.sizes, FbankConfig(num_mel_bins=recorder.sizes.mel_bins)
    trainings = {
        "triton": Training(recorder, small_model, **TRITON),
        "torch": Training(recorder, small_model, **PLAIN),
    }
    if find_spec("transformers") is not None:
        trainings["transformers"] = Training(recorder, peer_model)
    steps: Candidates = {name: training.step for name, training in trainings.items()}
    if recorder.device.type == "cuda":
        for name, step in list(steps.items()):
            try:
                steps[f"{name}, graph"] = captured(step)
            except Exception as error:
                if name == "triton":
                    raise
                print(f"{name} cannot be captured: {error}", file=sys.stderr)
    recorder.compare("training step", dict(steps), graphs=False, clips=sizes.batch)

    samples = (3000 * recorder.noise(sizes.batch, sizes.clip_samples)).to(torch.int16)

    def epoch(name: str) -> None:
        backend = "triton" if name.startswith("triton") else "reference"
        features = trainings[name.partition(",")[0]].features
        for _ in range(sizes.steps):
            log_mel = fbank(samples, config, backend=backend)[:, : sizes.frames]
            features[:, : log_mel.shape[1]] = log_mel
            steps[name]()

    candidates: Candidates = {name: partial(epoch, name) for name in steps}
    clips = sizes.batch * sizes.steps
    recorder.compare("fold's epoch", candidates, graphs=False, part=5, clips=clips)


def run_gpu_tests() -> dict[str, Any]:
    """Run the tests marked gpu, and return their outcomes.

    Compiling takes most of the time, so several processes share the tests.
    """
    command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
    begin = time.perf_counter()
    names = [line for line in _pytest([*command, "--collect-only"]) if "::" in line]
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    shards = [names[place::processes] for place in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        shown = list(pool.map(lambda shard: _pytest([*command, *shard]) if shard else [], shards))
    counts: Counter[str] = Counter()
    for lines in shown:
        for number, kind in re.findall(
            r"(\d+) (passed|failed|skipped|error)", " ".join(lines[-1:])
        ):
            counts[kind] += int(number)
    failed = [line for lines in shown for line in lines if line.startswith(("FAILED", "ERROR"))]
    skipped = [line for lines in shown for line in lines if line.startswith("SKIPPED")]
    return {
        "command": " ".join(["python", *command]),
        "collected": len(names),
        "counts": dict(counts),
        "failed": failed,
        "skipped": skipped,
        "said": [line for lines in shown if any(x in lines for x in failed) for line in lines],
        "seconds": time.perf_counter() - begin,
    }


def _pytest(arguments: list[str]) -> list[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # for each of many processes
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if run.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {run.returncode}:\n{run.stdout}{run.stderr}")
    return run.stdout.splitlines()


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"


def describe(device: torch.device) -> dict[str, Any]:
    """Return the facts that the figures depend on."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    import triton

    return {
        "command": "python -m bench.gpu_record " + " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "platform": platform.platform(),
        "device": device_name(device),
        "times_mean_something": device.type == "cuda",
    }


def table(record: dict[str, Any]) -> str:
    """Return every error and time as text."""
    lines = [f"{record['device']}, {record['date']}, commit {record['commit']}"]
    if not record["times_mean_something"]:
        lines.append("TOY SIZES IN THE INTERPRETER: times mean nothing")
    for name, row in record["errors"].items():
        verdict = "holds" if row["holds"] else "IS TOO LARGE"
        lines.append(f"error {name:<58} {row['error']:9.2e} of {row['bound']:.2e} {verdict}")
    for name, row in record["times"].items():
        for kind in ("seconds", "graph_seconds"):
            ours = row.get(kind, {}).get("triton")
            for candidate, seconds in row.get(kind, {}).items():
                extra = f"{seconds / ours:7.2f} ×" if ours else ""
                if "operations" in row:
                    extra += f" {row['operations'] / seconds / 1e12:8.1f} TFLOP/s"
                if "bytes" in row:
                    extra += f" {row['bytes'] / seconds / 1e9:8.1f} GB/s"
                if "clips" in row:
                    extra += f" {row['clips'] / seconds:10,.0f} clips/s"
                how = "called" if kind == "seconds" else "in a graph"
                shown = f"{seconds * 1e6:12,.1f} µs"
                lines.append(f"{name:<46} {candidate:<36} {how:<10} {shown} {extra}")
        for candidate, reason in row["cannot"].items():
            lines.append(f"{name:<46} {candidate:<26} cannot: {reason}")
    return "\n".join(lines)


@contextmanager
def tf32_allowed() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def main(arguments: list[str] | None = None) -> int:
    """Run every step, write the record, print the table; return 1 if a check or a test failed."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_record", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="toy sizes in Triton's interpreter")
    parser.add_argument("--out", type=Path, help="the record; default bench/history/DATE-GPU.json")
    parser.add_argument("--no-tests", action="store_true", help="leave out `pytest -m gpu`")
    options = parser.parse_args(arguments)
    if options.tiny and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--tiny needs TRITON_INTERPRET=1")
    if not options.tiny and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is for --tiny: a GPU would not be used")
    if not options.tiny and not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU; --tiny tries the steps without one")
    device = torch.device("cpu" if options.tiny else "cuda")
    name = re.sub(r"\W+", "-", device_name(device).lower()).strip("-")
    today = datetime.datetime.now(datetime.UTC).date()
    path = options.out or ROOT / "bench" / "history" / f"{today}-{name}.json"
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        parser.error(f"--out must be a file in a folder that can be written to, got {path}")
    if options.tiny:
        from ast_fast_kernels.testing import interpreter

        interpreter.install()
    recorder = Recorder(device, TINY if options.tiny else FULL)
    recorder.record = describe(device) | recorder.record
    record = recorder.record
    begin = time.perf_counter()

    def keep() -> None:  # after every step: a borrowed machine can be gone before the last
        record["seconds"] = time.perf_counter() - begin
        partial_path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    partial_path = path.with_suffix(".partial")
    for step in (
        check_kernels, measure_fbank, measure_attention, measure_block, measure_training,
    ):  # fmt: skip
        print(f"{step.__name__} …", file=sys.stderr, flush=True)
        # The other filterbanks multiply in full float32: in TF32 they would be less exact.
        with nullcontext() if step is measure_fbank else tf32_allowed():
            step(recorder)
        keep()
    print(table(record))
    if not options.no_tests:
        record["tests"] = run_gpu_tests()
        keep()
        print(f"tests: {record['tests']['counts']} {' '.join(record['tests']['failed'])}")
    partial_path.replace(path)
    print(f"{path}: {record['seconds']:.0f} s", file=sys.stderr)
    held = all(row["holds"] for row in record["errors"].values())
    tests = record.get("tests", {"failed": [], "counts": {}, "collected": 0})
    ran = sum(tests["counts"].values()) == tests["collected"]
    if not options.tiny:  # one test may skip: it needs differences finer than a GPU's products;
        needs_clips = "AST_FAST_DATA" not in os.environ  # another needs real clips
        ran = ran and tests["counts"].get("skipped", 0) <= 1 + needs_clips
    return 0 if held and ran and not tests["failed"] else 1


if __name__ == "__main__":
    sys.exit(main())
