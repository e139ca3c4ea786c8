"""The section of docs/benchmarks.md on a model on a stream, from a record of bench_streaming.py."""

from __future__ import annotations

from typing import Any

from bench.table import Cases, header, line, times

MODELS = {"our-default-5s": "default size, 5 s", "base-10s": "AST-base, 10 s"}
"""The names of models and their windows."""


def section(cases: Cases, where: str) -> str:
    """Return the section.

    Args:
        cases: Of the record.
        where: The machine, and a link to the record.
    Raises:
        InputError: The record lacks a group of cases.
    """
    return f"""
## A model on a stream

From the arrival of a window's last chunk, 100 ms, to the decision: by `StreamingClassifier`, and by
transformers' extractor and model (`sdpa`) on the whole window each time, with the same random
weights. Both take turns; the milliseconds are the median of so many rounds. A chunk between
decisions takes its features alone. Measured on {where}.

{decision_table(cases("streaming"))}

Clips a second of the default size, 5 s each, 16 of them, so many at a time:

{batch_table(cases("batches"))}
"""


def decision_table(found: list[dict[str, Any]]) -> str:
    """Return the table of decisions: by model, one thread before two."""
    rows = header(["model, window", "threads", "rounds", "transformers, ms", "ours, ms",
                   "faster by", "a chunk, ms"])  # fmt: skip
    names = list(MODELS)
    for case in sorted(found, key=lambda case: (names.index(case["folder"]), case["threads"])):
        took = case["milliseconds"]
        rows.append(line([
            MODELS[case["folder"]], str(case["threads"]), str(case["rounds"]),
            f"{took['transformers']:,.0f}", f"{took['ours']:,.0f}",
            times(case["ours_is_faster_by"]["transformers"]),
            f"{case['milliseconds_of_a_chunk']:.2f}",
        ]))  # fmt: skip
    return "\n".join(rows)


def batch_table(found: list[dict[str, Any]]) -> str:
    """Return the table of batches: one clip at a time, and more with what they gain."""
    _, *larger = batches = list(found[0]["clips_per_second"])
    rows = header(["threads", *batches, *(f"gain of {batch}" for batch in larger)])
    for case in sorted(found, key=lambda case: case["threads"]):
        rows.append(line([
            str(case["threads"]), *(f"{case['clips_per_second'][batch]:.1f}" for batch in batches),
            *(times(case["faster_than_one_at_a_time"][batch]) for batch in larger),
        ]))  # fmt: skip
    return "\n".join(rows)
