"""Facts that a GPU's figures depend on: versions, clocks, and what the card allows at best."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable

import numpy as np
import torch

from bench.gpu_timer import Recorder

QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,temperature.gpu"
LAUNCHES = 1000


def measure_facts(recorder: Recorder) -> None:
    """Record them; ceilings are medians."""
    facts = {
        "versions": _versions,
        "nvidia-smi": _driver,
        "card": _card,
        "copy, bytes/s": _copy,
        "bfloat16 product, operations/s": _product,
        "host's part of a torch launch, s": _launch,
    }
    for name, measure in facts.items():
        with recorder.step(name):
            if (value := measure(recorder)) is not None:
                recorder.file.keep("facts", name, value)


def _versions(recorder: Recorder) -> dict[str, str | int | None]:
    import triton

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver(recorder: Recorder) -> dict[str, str] | None:
    if not recorder.on_gpu:
        return None
    try:
        run = subprocess.run(
            ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"],
            capture_output=True, text=True, check=False, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):  # an image without it, or a driver that hangs
        return None
    first = run.stdout.partition("\n")[0]
    return dict(zip(QUERY.split(","), map(str.strip, first.split(",")), strict=False))


def _card(recorder: Recorder) -> dict[str, int | str] | None:
    if not recorder.on_gpu:
        return None
    card = torch.cuda.get_device_properties(recorder.device)
    return {
        "name": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory": card.total_memory,
        "second-level cache": card.L2_cache_size,
    }


def _copy(recorder: Recorder) -> float:
    source = recorder.noise(1 << 10).repeat(recorder.sizes.copied >> 10)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / _median(recorder, lambda: target.copy_(source))


def _product(recorder: Recorder) -> float:
    side = recorder.sizes.square
    a, b = (recorder.noise(side, side, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    return 2 * side**3 / _median(recorder, lambda: a @ b)


def _median(recorder: Recorder, run: Callable[[], object]) -> float:
    run()
    return statistics.median(recorder.seconds(run) for _ in range(recorder.sizes.rounds))


def _launch(recorder: Recorder) -> float:
    value = torch.zeros(1, device=recorder.device)
    recorder.wait()
    begin = time.perf_counter()
    for _ in range(LAUNCHES):
        value.add_(1)
    seconds = time.perf_counter() - begin
    recorder.wait()
    return seconds / LAUNCHES
