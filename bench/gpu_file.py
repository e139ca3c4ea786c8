"""A GPU's record on disk: each figure is kept as soon as it is known; table and verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ast_fast_kernels.files.atomic import atomic_write

Row = dict[str, Any]
TOY = "TOY SIZES IN THE INTERPRETER: times mean nothing"
KINDS = {
    "called": "as called",
    "graph": "in a graph, caches warm",
    "cold": "in a graph, L2 emptied",
}
"""Key of a comparison's row → what is timed."""


class RecordFile:
    """A record that is whole at any moment: a kill loses no figure that was kept before it.

    One process writes at a time: the command between stages, a stage while it runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: Row = {}
        self.read()

    def read(self) -> None:
        """Take over what another process kept."""
        if self.path.exists():
            self.record = json.loads(self.path.read_text(encoding="utf-8"))

    def keep(self, section: str, name: str, row: object, *, silent: bool = False) -> None:
        """Put a figure into the record on disk, then say so in a line.

        Args:
            section: Of the record, such as `"errors"`.
            name: Of the figure; an earlier one of that name is replaced.
            row: The figure, as JSON can hold it.
            silent: Whether to say nothing.
        """
        self.record.setdefault(section, {})[name] = row
        self.record["seconds"] = round(time.time() - self.record["began"], 1)
        text = json.dumps(self.record, indent=1, default=str) + "\n"
        with atomic_write(self.path) as partial:
            partial.write_text(text, encoding="utf-8")
        if not silent:
            print(f"kept {section}: {name}", flush=True)


def choice(row: Row) -> Row:
    """Return which way is faster, ours or torch's, and what auto takes.

    Args:
        row: A comparison of which `auto` is the backend that auto takes, and `torch` the name of
            the candidate that it could take instead of `triton`.
    Returns:
        `auto`; by what is timed, how many times as fast ours is, and which is `faster`: `ours`,
        `torch's`, or `neither` if their quartiles meet; and `wrong`, where auto takes the slower.
    """
    found: Row = {"auto": row["auto"]}
    for kind in KINDS:
        times = row.get(kind, {})
        if "triton" in times and row["torch"] in times:
            ours, torchs = times["triton"], times[row["torch"]]
            ratio = torchs["median"] / ours["median"]
            found[kind] = {"ours is faster by": ratio, "faster": _faster(ours, torchs)}
    slower = "torch's" if row["auto"] == "triton" else "ours"
    wrong = [kind for kind in KINDS if found.get(kind, {}).get("faster") == slower]
    return {**found, "wrong": wrong}


def _faster(ours: Row, torchs: Row) -> str:
    if ours["high"] < torchs["low"]:
        return "ours"
    return "torch's" if torchs["high"] < ours["low"] else "neither"


def failures(record: Row) -> list[str]:
    """Return a line for everything that is not as it should be."""
    lines = [
        f"{kind} {name}: {row['said'] if kind == 'hazard' else row['error']}"
        for kind, section in (("error", "errors"), ("hazard", "hazards"))
        for name, row in record.get(section, {}).items()
        if not row["holds"]
    ]
    lines += [f"raised in {name}: {said}" for name, said in record.get("raised", {}).items()]
    lines += [
        f"stage {name} ended with {stage['ended']}"
        for name, stage in record.get("stages", {}).items()
        if stage["ended"] != 0
    ]
    for name, row in record.get("times", {}).items():
        lines += [
            f"{name}: {candidate} cannot run: {reason}"
            for candidate, reason in row["cannot"].items()
            if candidate.startswith("triton")
        ]
    return lines + list(_failed_tests(record))


def _failed_tests(record: Row) -> Iterator[str]:
    tests = record.get("tests", {}).get("gpu")
    if tests is None:
        return
    yield from tests["failed"]
    ran = sum(tests["counts"].values())
    if ran != tests["collected"] or tests["codes"]:
        yield f"tests: {ran} of {tests['collected']} ran, pytest ended with {tests['codes']}"
    if record["times_mean_something"] and tests["counts"].get("skipped", 0) > tests["may_skip"]:
        yield f"tests: more than {tests['may_skip']} skipped: {tests['skipped']}"


def table(record: Row) -> str:
    """Return every figure as text."""
    lines = [f"{record['device']}, {record['date']}, commit {record['commit']}"]
    if not record["times_mean_something"]:
        lines.append(TOY)
    lines += [f"fact {name}: {value}" for name, value in record.get("facts", {}).items()]
    for name, row in record.get("errors", {}).items():
        verdict = "holds" if row["holds"] else "IS TOO LARGE"
        lines.append(f"error {name:<58} {row['error']:9.2e} of {row['bound']:.2e} {verdict}")
    for name, row in record.get("hazards", {}).items():
        lines.append(f"hazard {name:<70} {'holds' if row['holds'] else 'FAILS: ' + row['said']}")
    for section in ("times", "sweep"):
        for name, row in record.get(section, {}).items():
            lines += _lines_of_times(name, row)
    lines += _lines_of_choices(record.get("auto", {}))
    for name, reason in record.get("skipped", {}).items():
        lines.append(f"skipped {name}: {reason}")
    for name, row in record.get("tests", {}).items():
        lines.append(f"tests {name}: {row['counts']} of {row['collected']}")
    return "\n".join([*lines, *(f"FAILED {line}" for line in failures(record))])


def _lines_of_choices(choices: Row) -> Iterator[str]:
    """Yield a table: how many times as fast ours is as torch's way, and which is faster."""
    if choices:
        titles = "".join(f"{said:<26}" for said in KINDS.values())
        yield f"{'auto, and ours against torch':<52} {'takes':<10} {titles}"
    for name, row in choices.items():
        cells = ""
        for kind in KINDS:
            found = row.get(kind)
            cell = f"{found['ours is faster by']:.2f} ×, {found['faster']}" if found else "–"
            cells += f"{cell:<26}"
        wrong = ", ".join(KINDS[kind] for kind in row["wrong"])
        yield f"{name:<52} {row['auto']:<10} {cells}{f'WRONG {wrong}' if wrong else ''}".rstrip()


def _lines_of_times(name: str, row: Row) -> Iterator[str]:
    for kind, said in KINDS.items():
        ours = row.get(kind, {}).get("triton")
        for candidate, spread in row.get(kind, {}).items():
            seconds = spread["median"]
            extra = f"{seconds / ours['median']:7.2f} ×" if ours else ""
            for what, unit, scale in (
                ("operations", "TFLOP/s", 1e12), ("bytes", "GB/s", 1e9), ("clips", "clips/s", 1.0),
            ):  # fmt: skip
                if what in row:
                    extra += f" {row[what] / seconds / scale:11,.1f} {unit}"
            low, high = spread["low"] * 1e6, spread["high"] * 1e6
            shown = f"{seconds * 1e6:12,.1f} µs ({low:,.1f} to {high:,.1f})"
            yield f"{name:<46} {candidate:<36} {said:<24} {shown} {extra}"
    for candidate, reason in row["cannot"].items():
        yield f"{name:<46} {candidate:<26} cannot: {reason}"
