"""Extraction beside its work alone: decoding and the filterbank, in a loop.

One process and one thread make the same files of 5 s by either way, in turns. Extraction adds
digests, float16, shards, their verification and flushing, records and the lines of the manifest.
The flush of a run's last shard, for which nothing is left to be done meanwhile, is not in its time;
`extra_info` has it apart, beside the time of the process's CPU, which says what extraction costs
where every core has a process of its own. All are µs a file, medians of the turns; the ratios of
rates are medians of those within a turn. pytest's `--basetemp` says on which disk.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import soundfile

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.audio.load import read_waveform
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.corpus.extractor import FbankExtractor
from ast_fast_kernels.corpus.formats.shard import FormatName
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.jobs import make_shards
from ast_fast_kernels.corpus.plan import INPUT, RUN, Plan
from bench import page_extract
from bench.turns import settle

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
CASES: list[tuple[str, str, FormatName]] = [
    *((kind, name, "arrow") for kind in SOURCES for name in CONFIGS),
    ("WAV 16 kHz", "Kaldi, 80 bins", "npy"),
    ("WAV 16 kHz", "Kaldi, 80 bins", "parquet"),
    ("WAV 16 kHz", "Kaldi, 80 bins", "lhotse"),
]


@dataclass(frozen=True)
class Spent:
    """What a file took, in µs."""

    wall: float
    cpu: float
    """Of this process, all threads."""
    last_flush: float = 0.0


def audio_files(folder: Path, kind: str, number: int) -> list[str]:
    """Write noise of 5 s, and return the files."""
    suffix, rate, _ = SOURCES[kind]
    generator = np.random.default_rng(0)
    files = [folder / f"{index:03d}.{suffix}" for index in range(number)]
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
    rows = sum(next(shards).rows for _ in range(plan.num_shards))
    spent = _since(wall, cpu, len(files))
    wall = time.perf_counter()
    next(shards, None)
    found = Spent(*spent, 1e6 * (time.perf_counter() - wall) / len(files))
    shutil.rmtree(out)
    assert rows == len(files)
    return found


def _since(wall: float, cpu: float, files: int) -> tuple[float, float]:
    now = time.perf_counter(), time.process_time()
    return 1e6 * (now[0] - wall) / files, 1e6 * (now[1] - cpu) / files


def figures_of(own: list[Spent], engine: list[Spent]) -> dict[str, Any]:
    """Return medians in µs, and the medians of the ratios of rates within a turn."""
    pairs = list(zip(own, engine, strict=True))
    return {
        "microseconds_per_file": {
            "alone": median(one.wall for one in own),
            "extraction": median(one.wall for one in engine),
            "its CPU": median(one.cpu for one in engine),
            "last flush": median(one.last_flush for one in engine),
        },
        "rate": median(one.wall / other.wall for one, other in pairs),
        "rate_by_cpu": median(one.cpu / other.cpu for one, other in pairs),
    }


@pytest.fixture(scope="module")
def files_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[str]]:
    """Return a function that writes so many files of a kind once."""
    return cache(lambda kind, number: audio_files(tmp_path_factory.mktemp("audio"), kind, number))


@pytest.mark.benchmark(group="extract")
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["1-thread"])
@pytest.mark.parametrize(("kind", "convention", "form"), CASES)
def test_extraction(
    benchmark: Any, files_of: Callable[[str, int], list[str]], tmp_path: Path, kind: str,
    convention: str, form: FormatName, glance: bool, threads: int,
) -> None:  # fmt: skip
    *_, count = SOURCES[kind]
    own_files = files_of(kind, 2 if glance else FILES)
    files = own_files * (1 if glance else -(-count // FILES))
    config, out = CONFIGS[convention], tmp_path / "out"
    own: list[Spent] = []
    engine: list[Spent] = []

    def before() -> None:
        settle()
        own.append(alone(files, config))
        settle()

    def turn() -> None:
        engine.append(extracted(files, config, out, form))

    benchmark.pedantic(turn, setup=before, rounds=1 if glance else TURNS, warmup_rounds=1)
    benchmark.extra_info |= figures_of(own[1:], engine[1:])  # the first of each warms up
    benchmark.extra_info["files"] = len(files)
    page_extract.extraction_table([benchmark.params | benchmark.extra_info])
