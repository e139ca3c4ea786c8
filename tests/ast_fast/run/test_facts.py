"""run.json and measured.json of other versions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ast_fast.run.facts import RunFacts, peak_memory_gib
from ast_fast.run.folder import read_facts, read_measured
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.testing.processes import run_program

RECORDS = Path(__file__).parents[3] / "docs" / "records"
RUNS = sorted(RECORDS.glob("*/run*.json"))


@pytest.mark.parametrize("path", RUNS, ids=[str(path.relative_to(RECORDS)) for path in RUNS])
def test_every_recorded_run_reads_and_writes_alike(path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not {"amp", "processes", "kernels"} <= document.keys():
        pytest.skip("an earlier version did not record what a resumed run must find unchanged")
    assert RunFacts.from_json(document).to_json() == document


def test_what_another_version_wrote_is_kept(tmp_path: Path) -> None:
    document = json.loads(RUNS[-1].read_text(encoding="utf-8")) | {"note": ["later"]}
    (tmp_path / "run.json").write_text(json.dumps(document))
    facts = read_facts(tmp_path)
    again = facts.resumed_by(facts).finished(0.1).to_json()
    assert again["note"] == ["later"]
    assert len(again["resumed"]) == len(document["resumed"]) + 1


def test_a_fold_measured_by_another_version_is_whole(tmp_path: Path) -> None:
    check = {"backend": "reference", "shape": [1, 2], "reason": "the same", "later": 1.0}
    measured = {"seconds": 2.0, "stages": {"forward": 1.0}, "later": {}}
    measured |= {"kernels": {"fbank": check, "attention": check, "later": check}}
    (tmp_path / "measured.json").write_text(json.dumps(measured))
    found = read_measured(tmp_path)
    assert found is not None
    assert found.seconds == 2.0
    assert found.kernels.fbank.backend == "reference"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"seconds": 1}',
        '{"seconds": "1", "stages": {}, "epochs": 1, "kernels": {}}',
    ],
    ids=["empty", "list", "nothing", "partial", "wrong"],
)
def test_a_measurement_that_is_not_whole_is_to_be_made_again(content: str, tmp_path: Path) -> None:
    """Of version 0.2.0, which listed it in no manifest."""
    (tmp_path / "measured.json").write_text(content)
    assert read_measured(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("threads", "2", "threads must be an integer, got '2'"),
        ("resumed", 5, "resumed must be a list, got 5"),
        ("kernels", [], "kernels must be a table, got []"),
        ("versions", None, "versions must be a table, got None"),
        ("machine", "x", "machine must be a table, got 'x'"),
        ("commit", [], "commit must be a table or null, got []"),
        ("merged", {}, "merged must be a list or null, got {}"),
        ("started", 1, "started must be text, got 1"),
        ("ended", 1, "ended must be text or null, got 1"),
        ("peak_memory_gib", "1", "peak_memory_gib must be a number or null, got '1'"),
    ],
)
def test_a_fact_of_another_type_is_named(name, value, message, tmp_path: Path) -> None:
    """Of version 0.2.0, which had no checksum."""
    document = json.loads(RUNS[-1].read_text(encoding="utf-8")) | {name: value}
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=re.escape(f"run.json: {message}")):
        read_facts(tmp_path)


def test_a_process_s_peak_is_its_own() -> None:
    """Not that of the program that started it."""
    held = b"x" * 2**30
    program = "from ast_fast.run.facts import peak_memory_gib; print(peak_memory_gib())"
    peak = float(run_program(program))
    assert 0.1 < peak < 0.9
    assert len(held) / 2**30 < peak_memory_gib()
