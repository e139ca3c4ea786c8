"""The section of docs/benchmarks.md on a pre-trained AST, from a record of bench_pretrained.py."""

from __future__ import annotations

from typing import Any

from bench.table import Cases, header, line, times


def section(cases: Cases, where: str) -> str:
    """Return the section.

    Args:
        cases: Of the record.
        where: The machine, and a link to the record.
    Raises:
        InputError: The record lacks a group of cases.
    """
    return f"""
## A pre-trained AST

AST-base, as transformers publishes it: 87 million weights, here random ones, on clips of 10 s. A
forward pass from features to 527 logits by transformers (`sdpa`), by onnxruntime of its model, and
by `InferenceModel`. In bfloat16, a CPU without instructions for it emulates it for transformers,
while ours multiplies in float32: there the gain is the one over transformers in float32. All take
turns; the seconds are the median of so many rounds. The last column is the time of the pass's
arithmetic at the machine's best rate of multiply-adds, for every token; ours leaves out those of
the last block that the head does not read. Measured on {where}.

{forward_table(cases("pretrained"))}

From a waveform to logits by the files of `python -m ast_fast.export`, in onnxruntime, against
transformers' extractor and model in float32, one clip. The difference is the largest of the logits,
as a share of the largest logit.

{export_table(cases("pretrained-export"))}

From a waveform to the model's input, one clip, against `ASTFeatureExtractor`:

{extractor_table(cases("pretrained-extractor"))}
"""


OTHERS = ("transformers", "transformers in float32", "onnxruntime")


def forward_table(found: list[dict[str, Any]]) -> str:
    """Return the table of forward passes: float32 before bfloat16, one clip before many."""
    rows = header(["precision", "clips", "threads", "rounds", *(f"{name}, s" for name in OTHERS),
                   "ours, s", *(f"than {name}" for name in OTHERS), "GFLOP/s",
                   "at the best rate, s"])  # fmt: skip
    for case in sorted(found, key=_order):
        seconds, gains = case["seconds"], case["ours_is_faster_by"]
        rows.append(line([
            case["precision"], *_counts(case),
            *(_seconds(seconds.get(name)) for name in (*OTHERS, "ours")),
            *(times(gains.get(name)) for name in OTHERS),
            f"{case['gflops']:.0f}", _seconds(case["every_token_at_best_rate"]),
        ]))  # fmt: skip
    return "\n".join(rows)


def export_table(found: list[dict[str, Any]]) -> str:
    """Return the table of exported files."""
    rows = header(["file", "MB", "threads", "rounds", "transformers, s", "s", "than transformers",
                   "difference"])  # fmt: skip
    for name in dict.fromkeys(name for case in found for name in case["megabytes"]):
        for case in sorted(found, key=lambda case: case["threads"]):
            rows.append(line([
                name, f"{case['megabytes'][name]:.0f}", str(case["threads"]), str(case["rounds"]),
                _seconds(case["seconds"]["transformers"]), _seconds(case["seconds"][name]),
                times(case["faster_than_transformers_by"][name]), f"{case['error'][name]:.0e}",
            ]))  # fmt: skip
    return "\n".join(rows)


def extractor_table(found: list[dict[str, Any]]) -> str:
    """Return the table of the input's features."""
    rows = header(["threads", "transformers, ms", "ours, ms", "faster by", "difference"])
    for case in sorted(found, key=lambda case: case["threads"]):
        took = case["milliseconds"]
        rows.append(line([
            str(case["threads"]), f"{took['transformers']:.1f}", f"{took['ours']:.2f}",
            times(case["ours_is_faster_by"]["transformers"], 1),
            f"{case['largest_difference']:.0e}",
        ]))  # fmt: skip
    return "\n".join(rows)


def _order(case: dict[str, Any]) -> tuple[bool, int, int]:
    return case["precision"] != "float32", case["clips"], case["threads"]


def _counts(case: dict[str, Any]) -> list[str]:
    return [str(case[name]) for name in ("clips", "threads", "rounds")]


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f}"
