"""Turn a benchmark record into the filterbank's tables, and describe its machine.

python -m bench.table RECORD.json   prints the tables
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Column(NamedTuple):
    """Clips of a call, and threads."""

    clips: int
    threads: int

    def __str__(self) -> str:
        clips = f"{self.clips} clip{'s' * (self.clips > 1)}"
        return f"{clips}, {self.threads} thread{'s' * (self.threads > 1)}"


class Case(NamedTuple):
    """The figures of a benchmark's case that the tables show."""

    preset: str
    name: str  # of the peer; empty for ours
    dtype: str
    column: Column
    microseconds: float  # a clip
    ratio: float | None  # its time over ours
    share_of_floor: float | None


def read_cases(record: dict[str, Any]) -> list[Case]:
    """Return a record's cases of FBANK.

    Records before 2026-11-24 have one preset and one dtype, without their names.
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
    """Return the lines of the default convention's table: µs a clip, and our speed-up."""
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
    """Return the lines of the table of presets: our speed-up over each library."""
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
    return header([*titles, *map(str, columns)])


def _line(titles: list[str], columns: list[Column], row: Row, cell: Callable[[Case], str]) -> str:
    return line([*titles, *(cell(row[column]) if column in row else "–" for column in columns)])


def header(titles: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [line(titles), "|---" * len(titles) + "|"]


def line(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def read_record(path: str) -> dict[str, Any]:
    """Return the record at a path from the repository's root."""
    record: dict[str, Any] = json.loads((ROOT / path).read_text(encoding="utf-8"))
    return record


def machine(record: dict[str, Any]) -> str:
    """Return a short name of a record's machine: maker and vectors."""
    cpu = record["machine_info"]["cpu"]
    maker = "Xeon" if "Intel" in cpu["brand_raw"] else cpu["brand_raw"].removeprefix("AMD ")
    return f"the {maker} with {'AVX-512' if 'avx512f' in cpu['flags'] else 'AVX2'}"


def machine_row(record: dict[str, Any]) -> list[str]:
    """Return a record's machine as a row: name, processor, cores, vectors, caches of one core."""
    info, cpu = record["machine_info"], record["machine_info"]["cpu"]
    cores, flags = info["cores"], set(cpu["flags"])
    brand = "Intel Xeon" if "Intel" in cpu["brand_raw"] else cpu["brand_raw"]
    vectors = [words for flag, words in VECTORS.items() if flag in flags]
    l1, l2 = (cpu[f"{level}_cache_size"] // cores // 1024 for level in ("l1_data", "l2"))
    return [machine(record), brand, str(cores), ", ".join(vectors), f"{l1} KiB", f"{l2:,} KiB"]


VECTORS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX"}
"""Vector units, by the processor's flag for each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    cases = read_cases(json.loads(parser.parse_args().record.read_text(encoding="utf-8")))
    print("\n\n".join("\n".join(rows) for rows in (speed_table(cases), library_table(cases))))


if __name__ == "__main__":
    main()
