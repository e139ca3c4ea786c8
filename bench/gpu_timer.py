"""What the stages of a GPU's record share: sizes, a recorder of errors and times, CUDA graphs.

Candidates take turns, and a time has its quartiles. A candidate is timed as it is called, with the
host's part; as one of many calls in a CUDA graph, which leaves the device's part with warm caches;
and as a graph of one call after the second-level cache was emptied. Without a GPU the same steps
run with the clock and without graphs.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu_file import RecordFile, Row, choice

Candidates = dict[str, Callable[[], object]]
Call = Callable[..., Any]
NO_GRAPH = ("clip by clip", "torch eager", "torchaudio kaldi")
"""Parts of candidates' names: these make tables on the host at each call, which no graph takes."""
EMPTYING_BYTES = 256 << 20
"""Written to empty the second-level cache: several times the largest."""


@dataclass(frozen=True)
class Sizes:
    """The sizes to run: ESC-50's own, or toys."""

    attention: tuple[tuple[int, int, int, int], ...]  # (batch, tokens, heads, head_dim)
    compiled: tuple[tuple[int, int, int, int], ...]  # those beside FlexAttention: long to compile
    block: tuple[tuple[int, int], ...]  # (rows, width)
    rows: int
    width: int
    clips: tuple[int, ...]
    clip_samples: int
    batch: int
    steps: int  # of a fold's epoch, rounded up to a multiple of three
    epochs: int
    rounds: int
    calls: int  # of a candidate in a graph: the graph's own launch is a small part
    repeats: int  # for the same bits
    square: int  # of the matrix product that gives a ceiling
    copied: int  # floats of the copy that gives another
    sweep: int  # forms of each launch
    model: tuple[tuple[str, int], ...]  # fields of the model other than the defaults
    frames: int
    mel_bins: int
    tests: tuple[str, ...]
    processes: int  # that run tests at a time: each holds a CUDA context
    pieces: int  # of the tests for each of these


FULL = Sizes(
    attention=(
        (32, 250, 3, 64), (32, 512, 12, 64), (32, 256, 4, 32), (32, 128, 4, 32), (8, 600, 12, 64),
        (8, 1212, 12, 64), (1, 250, 3, 64),
    ),
    compiled=((32, 250, 3, 64), (32, 512, 12, 64)),
    block=((8000, 192), (250, 192), (9696, 768)), rows=8000, width=192,
    clips=(64, 1, 1024), clip_samples=80000, batch=32, steps=50, epochs=3, rounds=30, calls=20,
    repeats=20, square=8192, copied=1 << 28, sweep=100, model=(), frames=512,
    mel_bins=128, tests=("tests",), processes=16, pieces=3,
)  # fmt: skip
TINY = Sizes(
    attention=((1, 17, 2, 16),), compiled=((1, 17, 2, 16),), block=((5, 32),), rows=5, width=32,
    clips=(1,), clip_samples=600, batch=2, steps=1, epochs=1, rounds=1, calls=1, repeats=1,
    square=16, copied=1 << 10, sweep=1, model=(("embed_dim", 32), ("num_heads", 2), ("depth", 1)),
    frames=32, mel_bins=32, tests=("tests/kernels/test_triton_gelu.py",), processes=1, pieces=1,
)  # fmt: skip


class Recorder:
    """Keeps what the steps of a stage find, at once; an error in one leaves the others."""

    def __init__(self, file: RecordFile, device: torch.device, sizes: Sizes) -> None:
        self.file, self.device, self.sizes = file, device, sizes
        self.on_gpu = device.type == "cuda"

    def noise(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device, dtype)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Record what a step raises, and go on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.file.keep("raised", name, _said(error))

    def check(self, name: str, error: float, bound: float) -> None:
        """Record an error, and whether it is within its bound."""
        self.file.keep(
            "errors", name, {"error": error, "bound": bound, "holds": bool(error <= bound)}
        )

    def compare(
        self,
        name: str,
        candidates: Candidates,
        *,
        graphs: bool = True,
        part: int = 1,
        section: str = "times",
        **facts: float | str,
    ) -> None:
        """Time candidates in turns; record the reason of one that cannot run.

        Args:
            name: Of the comparison.
            candidates: Functions to call, by name.
            graphs: Whether to time them in CUDA graphs too.
            part: Divides the number of rounds, for candidates that take long.
            section: Of the record.
            facts: Recorded beside the times; `auto` and `torch` as in `gpu_file.choice`.
        """
        with self.step(name):
            row: Row = {"cannot": {}, **facts}
            runs = self._each(candidates, self._warmed, row["cannot"], "")
            self._keep_times(section, name, row, "called", runs, self.sizes.rounds // part)
            if not graphs:
                return
            runs = {key: run for key, run in runs.items() if not self._leaves_out(name, key)}
            many = self._each(runs, self._in_a_graph, row["cannot"], ", in a graph")
            self._keep_times(section, name, row, "graph", many, calls=self.sizes.calls)
            one = self._each(runs, self._once_in_a_graph, {}, "")
            self._keep_times(section, name, row, "cold", one, empties=True)

    def _leaves_out(self, name: str, candidate: str) -> bool:
        return name.startswith("fbank") and any(part in candidate for part in NO_GRAPH)

    def _each(
        self,
        runs: Candidates,
        change: Callable[[Callable[[], object]], Callable[[], object]],
        cannot: dict[str, str],
        suffix: str,
    ) -> Candidates:
        changed: Candidates = {}
        for candidate, run in runs.items():
            try:
                changed[candidate] = change(run)
            except Exception as error:  # such as a backend of SDPA that does not take the shape
                cannot[candidate + suffix] = _said(error)
        return changed

    def _warmed(self, run: Callable[[], object]) -> Callable[[], object]:
        for _ in range(2 if self.on_gpu else 1):
            run()
        self.wait()
        return run

    def _in_a_graph(self, run: Callable[[], object]) -> Callable[[], object]:
        return captured(run, self.sizes.calls) if self.on_gpu else run

    def _once_in_a_graph(self, run: Callable[[], object]) -> Callable[[], object]:
        return captured(run) if self.on_gpu else run

    def _keep_times(
        self,
        section: str,
        name: str,
        row: Row,
        kind: str,
        runs: Candidates,
        rounds: int = 0,
        calls: int = 1,
        empties: bool = False,
    ) -> None:
        row[kind] = {
            candidate: spread([seconds / calls for seconds in times])
            for candidate, times in self._turns(runs, rounds or self.sizes.rounds, empties).items()
        }
        self.file.keep(section, name, row)
        if "auto" in row:
            self.file.keep("auto", name, choice(row), silent=True)

    def _turns(self, runs: Candidates, rounds: int, empties: bool) -> dict[str, list[float]]:
        seconds: dict[str, list[float]] = {candidate: [] for candidate in runs}
        size = EMPTYING_BYTES if self.on_gpu else 1
        filler = torch.empty(size, dtype=torch.int8, device=self.device)
        for _ in range(max(rounds, 1)):
            for candidate, run in runs.items():
                if empties:
                    filler.zero_()
                seconds[candidate].append(self.seconds(run))
        return seconds

    def seconds(self, run: Callable[[], object]) -> float:
        if not self.on_gpu:
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
        if self.on_gpu:
            torch.cuda.synchronize()


def spread(times: list[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, median, high = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    )
    return {"median": median, "low": low, "high": high, "rounds": len(times)}


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


def both_ways(call: Call, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the results of a call and, for gradients of ones, those of its arguments."""
    results = call(*leaves)
    results = results if isinstance(results, tuple) else (results,)
    ones = [torch.ones_like(result) for result in results]
    return [*results, *torch.autograd.grad(results, leaves, ones)]


@contextmanager
def tf32_allowed() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
