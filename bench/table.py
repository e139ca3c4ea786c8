"""Turn a benchmark record into the filterbank's tables, and describe its machine.

python -m bench.table RECORD.json   prints them
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ast_fast_kernels.errors import InputError
from bench import records
from bench.machine import generation, maker, vectors
from bench.records import group_of, number

ROOT = Path(__file__).parents[1]

Cases = Callable[[str], list[dict[str, Any]]]
"""A record's cases of a group, each with its parameters and measurements."""


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

    Raises:
        InputError: A case lacks a figure.
    """
    return [_read_case(case) for case in record["benchmarks"] if group_of(case)[:5] == "fbank"]


def _read_case(case: dict[str, Any]) -> Case:
    def measured(name: str) -> float | None:
        return number(case, "extra_info", name) if name in case["extra_info"] else None

    waveforms, threads = (int(number(case, "params", name)) for name in ("waveforms", "threads"))
    return Case(
        preset=group_of(case).removeprefix("fbank").removeprefix("-") or "ast",
        name=case["params"].get("name", ""),
        dtype=case["params"].get("dtype", "float32"),
        column=Column(waveforms, threads),
        microseconds=1e6 / number(case, "extra_info", "clips_per_second"),
        ratio=measured("ours_is_faster_by"),
        share_of_floor=measured("share_of_floor"),
    )


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
    if not cases:
        return []
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
    return "–" if case.ratio is None else f"{case.ratio:.1f} ×"


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


def times(ratio: float | None, digits: int = 2) -> str:
    """Return a speed-up as text."""
    return "–" if ratio is None else f"{ratio:.{digits}f} ×"


def read_record(path: str) -> dict[str, Any]:
    """Return the record at a path from the repository's root."""
    return records.read_record(ROOT / path)


def machine(record: dict[str, Any]) -> str:
    """Return a short name of a record's machine: maker, generation and vectors."""
    cpu = record["machine_info"]["cpu"]
    known = generation(cpu)
    return f"the {maker(cpu)}{f' ({known})' if known else ''} with {vectors(cpu)}"


def machine_row(record: dict[str, Any]) -> list[str]:
    """Return a record's machine as a row: MACHINE's columns.

    Records before 2026-11-29 know neither the third cache nor the lanes.
    """
    info, cpu = record["machine_info"], record["machine_info"]["cpu"]
    cores, flags = info["cores"], set(cpu["flags"])
    units = [words for flag, words in VECTORS.items() if flag in flags]
    sizes = {"L1d": cpu.get("l1_data_cache_size", 0) // cores,
             "L2": cpu.get("l2_cache_size", 0) // cores} | info.get("caches", {})  # fmt: skip
    shown = [f"{sizes[level] // 1024:,} KiB" if sizes.get(level) else "–" for level in LEVELS]
    brand = "Intel Xeon" if "Intel" in cpu["brand_raw"] else cpu["brand_raw"]
    family = f"{cpu['family']}, {cpu['model']}" if "family" in cpu else "–"
    lanes = str(info.get("float32_lanes") or (16 if "avx512f" in flags else 8))
    return [machine(record), brand, family, str(cores), ", ".join(units), lanes, *shown]


VECTORS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX"}
"""Vector units, by the processor's flag for each."""
LEVELS = ("L1d", "L2", "L3")
MACHINE = ("name here", "processor", "family, model", "cores", "vectors", "float32 lanes",
           "L1 data cache", "L2", "L3")  # fmt: skip
"""Columns of a table of machines. Caches are those that one core uses."""


def tables(path: Path) -> str:
    """Return the tables of a record of FBANK.

    Raises:
        InputError: The file is no record, or has no case of FBANK.
    """
    record = records.read_record(path)
    try:
        cases = read_cases(record)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not cases:
        groups = sorted({group_of(case) for case in record["benchmarks"]})
        raise InputError(
            f"{path} must have cases of bench_fbank.py, got {', '.join(groups) or 'none'}"
        )
    found = [speed_table(cases), library_table(cases)]
    return "\n\n".join("\n".join(rows) for rows in found if rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    print(tables(parser.parse_args().record))


if __name__ == "__main__":
    records.run(main)
