"""A path that holds no record is one clear line and exit code 2, whichever program gets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ast_fast_kernels._cpu import caches
from ast_fast_kernels.errors import InputError
from bench import machine, page, plot, plot_model, records, table

FBANK = {
    "name": "test_ours",
    "group": "fbank-ast",
    "params": {"waveforms": 64, "threads": 2},
    "extra_info": {"clips_per_second": 1e4, "share_of_floor": 0.5},
}
MODEL = {
    "name": "test_model_step[float32]",
    "group": "model",
    "params": {"varied": "depth", "value": 2},
    "extra_info": {"milliseconds_per_clip": 1.0, "floor_milliseconds_per_clip": 0.5},
}
OTHER = {"name": "a", "group": None, "params": None, "extra_info": {}}


def without(case: dict[str, Any], part: str, name: str) -> dict[str, Any]:
    return {**case, part: {key: case[part][key] for key in case[part].keys() - {name}}}


def run(program: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: Path) -> None:
    """Run a program as `python -m` does."""
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
    if program is table:
        records.run(table.main)
    else:
        records.run(lambda: plot.main(program.__doc__, program.draw))


PROGRAMS = pytest.mark.parametrize("program", [table, plot, plot_model])
DAMAGE: dict[str, tuple[str | None, str]] = {
    "missing": (None, "cannot be read: No such file or directory"),
    "not-json": ("<html>", "must be a record in JSON: Expecting value"),
    "not-utf-8": ("\udcff", "must be a record in JSON"),
    "deep": ("[" * 100_000, "must be a record in JSON"),
    "a-list": ("[1]", "must hold a JSON object, got a list"),
    "of-a-gpu": ('{"errors": {}, "times": {}}', "with a list of benchmarks; it has errors, times"),
    "a-word": ('{"benchmarks": ["a"]}', "benchmarks[0] must be a case with extra_info"),
    "no-cases": ('{"benchmarks": []}', "got none"),
    "other-cases": (json.dumps({"benchmarks": [OTHER]}), "must "),
}


@PROGRAMS
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_no_record_is_one_line(
    program: ModuleType, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    content, rule = DAMAGE[damage]
    path = tmp_path / "outside.json"
    if content is not None:
        path.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(SystemExit) as ended:
        run(program, monkeypatch, path, *[tmp_path / "a.svg"] * (program is not table))
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert str(path) in line
    assert rule in line
    assert not (tmp_path / "a.svg").exists()


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (without(FBANK, "extra_info", "clips_per_second"), "extra_info['clips_per_second']"),
        (without(FBANK, "params", "threads"), "params['threads']"),
        ({**FBANK, "params": None}, "params['waveforms']"),
        ({**FBANK, "extra_info": {"clips_per_second": 0}}, "positive number, got 0"),
        ({**FBANK, "extra_info": {"clips_per_second": "x"}}, "positive number, got x"),
    ],
)
def test_a_case_without_its_figure_is_named(
    case: dict[str, Any], what: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"benchmarks": [FBANK, case]}))
    with pytest.raises(InputError) as raised:
        table.tables(path)
    assert str(path) in str(raised.value)
    assert what in str(raised.value)
    assert "test_ours" in str(raised.value)


def test_a_record_outside_the_repository_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"benchmarks": [OTHER, FBANK]}))
    monkeypatch.chdir(tmp_path)
    run(table, monkeypatch, Path("a.json"))
    assert "| **ours** (`numba`) | 100 |" in capsys.readouterr().out


def test_a_picture_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"benchmarks": [FBANK]}))
    for target, rule in ((tmp_path / "no" / "a.svg", "cannot be written"), (tmp_path, "in .svg")):
        with pytest.raises(SystemExit):
            run(plot, monkeypatch, path, target)
        line = capsys.readouterr().err
        assert str(target) in line
        assert rule in line


def test_a_page_names_the_record_that_lacks_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(page.RECORDS, "training", page.RECORDS["stem"])
    with pytest.raises(InputError, match=r"stem-epyc.*must have cases of step-recipe, got none"):
        page.recipe_table()
    found = page.cases("stem", "stem-both")
    with pytest.raises(
        InputError, match=r"stem-epyc.* one case of stem-both with threads 3, got 0"
    ):
        page.one(found, threads=3)
    monkeypatch.setitem(page.RECORDS, "stem", "bench/history/none.json")
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        page.benchmarks()


def test_caches_are_those_that_linux_names(tmp_path: Path, monkeypatch) -> None:
    kinds = [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "512K"),
             ("3", "Unified", "8M"), ("4", "Unified", "?")]  # fmt: skip
    for place, values in enumerate(kinds):
        folder = tmp_path / "cache" / f"index{place}"
        folder.mkdir(parents=True)
        for name, value in zip(("level", "type", "size"), values, strict=True):
            (folder / name).write_text(f"{value}\n")
    assert caches.data_caches(tmp_path) == {1: 2**15, 2: 2**19, 3: 2**23}
    assert caches.data_caches(tmp_path / "none") == {}
    monkeypatch.setattr(machine, "data_caches", lambda: caches.data_caches(tmp_path))
    assert machine.describe({})["caches"] == {"L1d": 2**15, "L2": 2**19, "L3": 2**23}


def test_a_record_s_name_tells_vectors_first_cache_and_cores() -> None:
    cpu = {"brand_raw": "AMD EPYC", "flags": ["avx2"]}
    assert machine.file_name(cpu, {"caches": {"L1d": 32768}}, 2) == "epyc-avx2-l1d32-2core"
    xeon = {"brand_raw": "Intel(R) Xeon(R) Processor", "flags": ["avx2", "avx512f"]}
    assert machine.file_name(xeon, {"caches": {}}, 4) == "xeon-avx512-4core"


def test_this_machine_is_described() -> None:
    facts = machine.describe({"flags": ["avx512_bf16"]})
    assert facts["float32_lanes"] in (4, 8, 16)
    assert facts["bfloat16"] == ["avx512_bf16"]
