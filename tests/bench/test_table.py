"""The tables that README shows are those of the record that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import plot, table
from bench.table import Column


def make_case(
    name: str, threads: int, micros: float, group: str = "fbank-ast", **extra: Any
) -> Any:
    parameters = {"waveforms": 64, "threads": threads, "dtype": extra.pop("dtype", "float32")}
    return {
        "group": group,
        "params": parameters | ({"name": name} if name else {"preset": "ast"}),
        "extra_info": {"clips_per_second": 1e6 / micros, **extra},
    }


RECORD: dict[str, Any] = {
    "benchmarks": [
        make_case("slow", 1, 9000.0, ours_is_faster_by=90.04),
        make_case("fast", 1, 400.0, ours_is_faster_by=4.0),
        make_case("fast", 2, 210.0, ours_is_faster_by=4.2),
        make_case("fast", 1, 300.0, ours_is_faster_by=3.0, dtype="int16"),
        make_case("", 1, 100.0, share_of_floor=0.513),
        make_case("", 2, 50.0, share_of_floor=0.48),
        make_case("library", 1, 700.0, "fbank-whisper", ours_is_faster_by=7.0),
        make_case("", 1, 120.0, "fbank-whisper", share_of_floor=0.4),
        {"group": "attention", "params": {}, "extra_info": {}},
    ]
}
CASES = table.read_cases(RECORD)


def test_readme_shows_the_record_that_it_names() -> None:
    readme = table.README.read_text(encoding="utf-8")
    blocks = list(table.BLOCK.finditer(readme))
    assert len(blocks) == 1
    assert blocks[0].group() == table.block(blocks[0].group(1))


def test_speeds_are_ours_first_then_from_fast_to_slow() -> None:
    assert table.speed_table(CASES) == [
        "| µs a clip | 64 clips, 1 thread | 64 clips, 2 threads |",
        "|---|---|---|",
        "| **ours** (`numba`) | 100 | 50 |",
        "| share of the floor | 51 % | 48 % |",
        "| fast | 400 (4.0 ×) | 210 (4.2 ×) |",
        "| fast, int16 | 300 (3.0 ×) | – |",
        "| slow | 9,000 (90.0 ×) | – |",
    ]


def test_libraries_stand_with_their_presets() -> None:
    assert table.library_table(CASES) == [
        "| preset | library | 64 clips, 1 thread |",
        "|---|---|---|",
        "| `whisper` | library | 7.0 × |",
    ]


def test_a_record_of_one_convention_has_one_table() -> None:
    cases = [case for case in CASES if case.preset == "ast"]
    assert table.library_table(cases) == []


def test_a_record_from_before_there_were_presets_is_read_as_the_default() -> None:
    extra = {"clips_per_second": 10.0, "ours_is_faster_by": 2.0}
    parameters = {"waveforms": 1, "threads": 2, "name": "reference-batched"}
    old = {"benchmarks": [{"group": "fbank", "params": parameters, "extra_info": extra}]}
    (case,) = table.read_cases(old)
    assert case == table.Case("ast", "reference-batched", "float32", Column(1, 2), 1e5, 2.0, None)


@pytest.mark.parametrize(
    ("clips", "threads", "words"), [(1, 1, "1 clip, 1 thread"), (64, 2, "64 clips, 2 threads")]
)
def test_columns_say_clips_and_threads(clips: int, threads: int, words: str) -> None:
    assert str(Column(clips, threads)) == words


def test_readme_is_rewritten_between_its_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "record.json").write_text(json.dumps(RECORD))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench/table.py old.json -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "README", readme)
    monkeypatch.setattr("sys.argv", ["table", str(tmp_path / "record.json"), "--readme"])
    table.main()
    assert readme.read_text() == f"before\n{table.block('record.json')}after\n"


def test_plot_names_every_candidate_and_is_the_same_each_time(tmp_path: Path) -> None:
    plot.draw(RECORD, tmp_path / "a.svg")
    plot.draw(RECORD, tmp_path / "b.svg")
    svg = (tmp_path / "a.svg").read_text()
    for text in ("ours", "fast", "slow", "10,000, 1 thread", "2,500"):
        assert f">{text}</text>" in svg
    assert "library" not in svg
    assert svg == (tmp_path / "b.svg").read_text()
