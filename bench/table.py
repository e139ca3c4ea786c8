"""Print a benchmark record as the tables that README holds.

python -m bench.table RECORD.json            prints them
python -m bench.table RECORD.json --readme   writes them into README.md, between its markers
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"<!-- bench/table.py (\S+) -->\n.*?<!-- end -->\n", re.DOTALL)
"""README's block of tables, and the record that it is made from."""


class Column(NamedTuple):
    """Clips of a call, and threads."""

    clips: int
    threads: int

    def __str__(self) -> str:
        clips = f"{self.clips} clip{'s' * (self.clips > 1)}"
        return f"{clips}, {self.threads} thread{'s' * (self.threads > 1)}"


class Case(NamedTuple):
    """What the tables need of a benchmark's case."""

    preset: str
    name: str  # of the peer; ours where it is empty
    dtype: str
    column: Column
    microseconds: float  # a clip
    ratio: float | None  # of its time to ours
    share_of_floor: float | None


def read_cases(record: dict[str, Any]) -> list[Case]:
    """Return a record's cases of FBANK.

    Records before 2026-11-24 know one preset and one dtype.
    """
    cases = []
    for case in record["benchmarks"]:
        if not case["group"].startswith("fbank"):
            continue
        parameters, extra = case["params"], case["extra_info"]
        cases.append(
            Case(
                preset=case["group"].removeprefix("fbank").removeprefix("-") or "ast",
                name=parameters.get("name", ""),
                dtype=parameters.get("dtype", "float32"),
                column=Column(parameters["waveforms"], parameters["threads"]),
                microseconds=1e6 / extra["clips_per_second"],
                ratio=extra.get("ours_is_faster_by"),
                share_of_floor=extra.get("share_of_floor"),
            )
        )
    return cases


Row = dict[Column, Case]


def rows_of(cases: Iterable[Case]) -> dict[tuple[str, str, str], Row]:
    """Return cases by (preset, name, dtype) and column: ours first, then from fast to slow."""
    rows: dict[tuple[str, str, str], Row] = defaultdict(dict)
    for case in cases:
        rows[case.preset, case.name, case.dtype][case.column] = case

    def order(key: tuple[str, str, str]) -> tuple[bool, float]:
        return key[1] != "", rows[key][max(rows[key])].microseconds

    return {key: rows[key] for key in sorted(rows, key=order)}


def speed_table(cases: list[Case]) -> list[str]:
    """Return the lines of the default convention's table: µs a clip, and our ratio to each."""
    cases = [case for case in cases if case.preset == "ast"]
    columns, rows = sorted({case.column for case in cases}), rows_of(cases)
    lines = _header(["µs a clip"], columns)
    for (_, name, dtype), row in rows.items():
        lines.append(_line([_title(name or "**ours** (`numba`)", dtype)], columns, row, _speed))
    shares = rows.get(("ast", "", "float32"), {})
    if shares and all(case.share_of_floor for case in shares.values()):
        lines.insert(3, _line(["share of the floor"], columns, shares, _share))
    return lines


def library_table(cases: list[Case]) -> list[str]:
    """Return the lines of the table of presets: our ratio to the library of each."""
    cases = [case for case in cases if case.name and case.preset != "ast"]
    if not cases:
        return []
    columns = sorted({case.column for case in cases})
    lines = _header(["preset", "library"], columns)
    for (preset, name, dtype), row in sorted(rows_of(cases).items()):
        lines.append(_line([f"`{preset}`", _title(name, dtype)], columns, row, _ratio))
    return lines


def _title(name: str, dtype: str) -> str:
    return name if dtype == "float32" else f"{name}, {dtype}"


def _ratio(case: Case) -> str:
    return f"{case.ratio:.1f} ×"


def _speed(case: Case) -> str:
    return f"{case.microseconds:,.0f}" + (f" ({_ratio(case)})" if case.ratio else "")


def _share(case: Case) -> str:
    return f"{case.share_of_floor:.0%}".replace("%", " %")


def _header(titles: list[str], columns: list[Column]) -> list[str]:
    titles = [*titles, *map(str, columns)]
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _line(titles: list[str], columns: list[Column], row: Row, cell: Callable[[Case], str]) -> str:
    cells = [cell(row[column]) if column in row else "–" for column in columns]
    return f"| {' | '.join([*titles, *cells])} |"


def block(record_path: str) -> str:
    """Return README's block for a record, named by its path from the root."""
    cases = read_cases(json.loads((ROOT / record_path).read_text(encoding="utf-8")))
    source = f"From [{record_path}]({record_path})."
    tables = ["\n".join(table) for table in (speed_table(cases), library_table(cases)) if table]
    begin = f"<!-- bench/table.py {record_path} -->"
    return "\n\n".join([begin, *tables, source, "<!-- end -->\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--readme", action="store_true")
    args = parser.parse_args()
    text = block(args.record.resolve().relative_to(ROOT).as_posix())
    if args.readme:
        readme = README.read_text(encoding="utf-8")
        README.write_text(BLOCK.sub(lambda _: text, readme), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
