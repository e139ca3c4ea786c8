"""The figures of extraction: what a file takes, and the tables that show it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ast_fast_kernels.errors import InputError
from bench import bench_extract, corpus_rates, page, table
from bench.bench_extract import CONFIGS, Spent


def test_extraction_is_timed_beside_its_work_alone(tmp_path: Path) -> None:
    files = bench_extract.audio_files(tmp_path, "WAV 16 kHz", 2)
    config = CONFIGS["AST, 128 bins"]
    own = [bench_extract.alone(files, config) for _ in range(2)]
    engine = [bench_extract.extracted(files, config, tmp_path / "out", "npy") for _ in range(2)]
    assert all(spent.wall > 0 for spent in own + engine)
    assert all(spent.last_flush > 0 for spent in engine)
    assert not (tmp_path / "out").exists()


def test_rates_are_medians_of_those_within_a_turn() -> None:
    own = [Spent(100.0, 90.0), Spent(200.0, 180.0), Spent(150.0, 90.0)]
    engine = [Spent(200.0, 100.0, 3.0), Spent(250.0, 200.0, 1.0), Spent(200.0, 120.0, 2.0)]
    figures = bench_extract.figures_of(own, engine)
    assert figures["rate"] == 0.75  # of 0.5, 0.8, 0.75
    assert figures["rate_by_cpu"] == 0.9
    micros = {"alone": 150.0, "extraction": 200.0, "its CPU": 120.0, "last flush": 2.0}
    assert figures["microseconds_per_file"] == micros


RATES: dict[str, Any] = {
    "files": 2000, "file_bytes": 441_044, "shard_size": 83, "overhead_ms": 0.034,
    "processes": {"file_ms": [1.1, 1.05, 1.2], "first_shard_s": [0.9, 0.8, 0.85]},
    "ray": {"file_ms": [1.12, 1.3, 1.11], "first_shard_s": [3.9, 4.2, 3.8]},
}  # fmt: skip


def test_sections_of_extraction_come_with_their_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("extract", "corpus"):
        monkeypatch.delitem(page.RECORDS, name, raising=False)
    without = page.benchmarks()
    record = corpus_rates.record_of({"wav": RATES}, 2)
    # This machine's would know more of a machine that is on the page already.
    record["machine_info"] = table.read_record(page.RECORDS["training"])["machine_info"]
    figures = bench_extract.figures_of([Spent(700.0, 690.0)], [Spent(800.0, 766.7, 40.0)])
    case = {"name": "a", "group": "extract", "extra_info": figures}
    case["params"] = {"kind": "OGG 44.1 kHz", "convention": "AST, 128 bins", "form": "npy"}
    record["benchmarks"].append(case)
    (tmp_path / "a.json").write_text(json.dumps(record))
    for name in ("extract", "corpus"):
        monkeypatch.setitem(page.RECORDS, name, str(tmp_path / "a.json"))
    with_them = page.benchmarks()
    for row in (
        "| OGG 44.1 kHz | AST, 128 bins | npy | 700 | 800 | 767 | 40 | 0.88 × | 0.90 × |",
        "| wav | 2,000 | 441 | 1.05 to 1.20 | 1.11 to 1.30 | 0.03 | 0.80 to 0.90 | 3.80 to 4.20 |",
        table.machine(record),
    ):
        assert row in with_them
    for line in without.splitlines():
        assert line in with_them


def test_a_corpus_must_have_files_for_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, rule in (([], "got none"), ([tmp_path], "at least 24 files, got 0"),
                        ([tmp_path / "absent"], "absent must be a folder")):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, given)])
        with pytest.raises(InputError, match=rule):
            corpus_rates.main()
