"""Sections of docs/benchmarks.md on extraction: of bench_extract.py and corpus_rates.py."""

from __future__ import annotations

from typing import Any

from bench.table import Cases, header, line, times


def extraction(cases: Cases, where: str) -> str:
    """Return the section of bench_extract.py.

    Args:
        cases: Of the record.
        where: The machine, and a link to the record.
    Raises:
        InputError: The record lacks them.
    """
    return f"""
### Extraction of a corpus

What `python -m ast_fast_kernels.extract` costs beside its work alone, `read_waveform` and `fbank`
in a loop: one process, one thread, files of 5 s in the page cache, float16. Extraction adds
digests, shards, their verification and flushing, and the manifest. Its rate is relative to that of
the work alone; by CPU is where every core has a process of its own. The flush of a run's last
shard comes once and is apart. Measured on {where}.

{extraction_table(cases("extract"))}
"""


MICROSECONDS = ("alone", "extraction", "its CPU", "last flush")


def extraction_table(found: list[dict[str, Any]]) -> str:
    """Return the table of bench_extract.py."""
    rows = header(["files", "convention", "format", *(f"{name}, µs" for name in MICROSECONDS),
                   "rate", "rate by CPU"])  # fmt: skip
    for case in found:
        micros = [f"{case['microseconds_per_file'][name]:,.0f}" for name in MICROSECONDS]
        ratios = [times(case["rate"]), times(case["rate_by_cpu"])]
        rows.append(line([case["kind"], case["convention"], case["form"], *micros, *ratios]))
    return "\n".join(rows)


def corpus(cases: Cases, where: str) -> str:
    """Return the section of corpus_rates.py.

    Args:
        cases: Of the record.
        where: The machine, and a link to the record.
    Raises:
        InputError: The record lacks them.
    """
    return f"""
### Processes and Ray

Milliseconds a file while as many processes as cores are at work, those of one machine
(`--jobs`) and of a Ray cluster of that machine (`--ray`), and seconds until the first shard is
there; ranges of the turns. A file costs Ray so much more, by the median of the turns.
Measured on {where}.

{corpus_table(cases("corpus"))}
"""


def corpus_table(found: list[dict[str, Any]]) -> str:
    """Return the table of corpus_rates.py."""
    kinds = ("processes", "ray")
    rows = header(["folder", "files", "kB a file", *(f"ms, {kind}" for kind in kinds), "more, ms",
                   *(f"first shard, s, {kind}" for kind in kinds)])  # fmt: skip
    for case in found:
        cells = [case["folder"], f"{case['files']:,}", f"{case['file_bytes'] / 1000:,.0f}"]
        cells += [_range(case[kind]["file_ms"]) for kind in kinds]
        cells.append(f"{case['overhead_ms']:.2f}")
        rows.append(line([*cells, *(_range(case[kind]["first_shard_s"]) for kind in kinds)]))
    return "\n".join(rows)


def _range(turns: list[float]) -> str:
    return f"{min(turns):.2f} to {max(turns):.2f}"
