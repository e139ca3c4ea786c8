"""The rate of extraction beside that of its work alone: decoding and the filterbank, in a loop.

python -m bench.bench_extract [OUT] [arrow|npy|parquet|lhotse] [ITEMS]

One process and one thread make the same files by either way, in turns. Extraction adds digests,
float16, shards, their verification and flushing, records and the lines of the manifest. The flush
of a run's last shard, for which nothing is left to be done meanwhile, is not in its time; it is
printed beside it, as is the time of the process's CPU: that says what extraction costs where every
core has a process of its own.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import soundfile

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.audio.load import read_waveform
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.corpus.extractor import FbankExtractor
from ast_fast_kernels.corpus.formats.shard import FormatName
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.jobs import make_shards
from ast_fast_kernels.corpus.plan import INPUT, RUN, Plan

FILES = 200
SECONDS = 5
SHARD_SIZE = 500
TURNS = 5
SOURCES = {
    "WAV 16 kHz": ("wav", 16000, 1500),
    "WAV 44.1 kHz": ("wav", 44100, 1000),
    "OGG 44.1 kHz": ("ogg", 44100, 200),
}
"""Kind of file → its suffix, its rate, and how many are extracted in a turn."""
CONFIGS = {
    "AST, 128 bins": FbankConfig(),
    "Kaldi, 80 bins": FbankConfig.preset("kaldi", num_mel_bins=80),
}


@dataclass(frozen=True)
class Spent:
    """What a file took, in µs."""

    wall: float
    cpu: float
    """Of this process, all threads."""
    last_flush: float = 0.0


def audio_files(folder: Path, suffix: str, rate: int) -> list[str]:
    """Write noise of 5 s, and return the files."""
    generator = np.random.default_rng(0)
    files = [folder / f"{index:03d}.{suffix}" for index in range(FILES)]
    for path in files:
        soundfile.write(path, generator.uniform(-0.5, 0.5, SECONDS * rate), rate)
    return list(map(str, files))


def alone(files: list[str], config: FbankConfig) -> Spent:
    """Decode each file and make its features, which are dropped."""
    wall, cpu = time.perf_counter(), time.process_time()
    for path in files:
        waveform, _ = read_waveform(AudioSource(path), 16000, keep_int16=True)
        fbank(waveform, config)
    return Spent(*_since(wall, cpu, len(files)))


def extracted(files: list[str], config: FbankConfig, out: Path, form: FormatName) -> Spent:
    """Make a run's shards of the files in a new folder."""
    (out / RUN).mkdir(parents=True)
    lines = [Item(path).to_line() + "\n" for path in files]
    (out / RUN / INPUT).write_text("".join(lines))
    ends = np.cumsum([0, *map(len, lines)])
    offsets = [int(ends[first]) for first in range(0, len(files), SHARD_SIZE)]
    facts = {"sample_rate": 16000, "frame_shift": 10.0}
    plan = Plan(
        out, Path("/"), FbankExtractor(config), form, "float16", {}, False,
        [*offsets, int(ends[-1])], len(files), facts,
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    shards = make_shards(plan, range(plan.num_shards), 1)
    for _ in range(plan.num_shards):
        next(shards)
    spent = _since(wall, cpu, len(files))
    wall = time.perf_counter()
    next(shards, None)
    found = Spent(*spent, 1e6 * (time.perf_counter() - wall) / len(files))
    shutil.rmtree(out)
    return found


def _since(wall: float, cpu: float, files: int) -> tuple[float, float]:
    return tuple(  # type: ignore[return-value]
        1e6 * spent / files for spent in (time.perf_counter() - wall, time.process_time() - cpu)
    )


def measure(ways: dict[str, Callable[[], Spent]]) -> dict[str, list[Spent]]:
    """Return what each way spends, in turns, after one turn that does not count."""
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            found = way()
            if turn:
                spent[name].append(found)
    return spent


def line_of(spent: dict[str, list[Spent]]) -> dict[str, Any]:
    """Return medians in µs, and the medians of the ratios of rates within a turn."""
    own, engine = spent["alone"], spent["extraction"]
    pairs = list(zip(own, engine, strict=True))
    return {
        "alone": round(median(one.wall for one in own)),
        "extraction": round(median(one.wall for one in engine)),
        "its CPU": round(median(one.cpu for one in engine)),
        "last flush": round(median(one.last_flush for one in engine)),
        "rate": round(median(one.wall / other.wall for one, other in pairs), 3),
        "rate by CPU": round(median(one.cpu / other.cpu for one, other in pairs), 3),
    }


def main() -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else None
    form: Any = sys.argv[2] if len(sys.argv) > 2 else "arrow"
    wanted = int(sys.argv[3]) if len(sys.argv) > 3 else sys.maxsize
    if form not in get_args(FormatName):
        raise SystemExit(f"the format must be one of {', '.join(get_args(FormatName))}")
    for kind, (suffix, rate, count) in SOURCES.items():
        with tempfile.TemporaryDirectory(dir=where) as folder:
            own = audio_files(Path(folder), suffix, rate)
            files = [own[index % FILES] for index in range(min(count, wanted))]
            for name, config in CONFIGS.items():
                out = Path(folder) / "out"
                ways: dict[str, Callable[[], Spent]] = {
                    "alone": lambda files=files, config=config: alone(files, config),  # type: ignore[misc]
                    "extraction": lambda files=files, config=config, out=out: extracted(  # type: ignore[misc]
                        files, config, out, form
                    ),
                }
                print(f"{kind}, {name}, {form}:", line_of(measure(ways)), flush=True)


if __name__ == "__main__":
    main()
