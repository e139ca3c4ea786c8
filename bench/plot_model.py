"""Draw a record of bench_model.py: a step's time a clip and its floor, a panel for each size.

python -m bench.plot_model RECORD.json docs/model.svg
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ast_fast_kernels.errors import InputError
from bench import plot, records
from bench.plot import OURS, STYLE, THEIRS
from bench.records import group_of, number

PANELS = {
    "tokens": "tokens",
    "embed_dim": "width",
    "depth": "blocks",
    "batch": "clips a batch",
}
PRECISIONS = {"float32": THEIRS, "bfloat16": OURS}


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the plot, without a background.

    Raises:
        InputError: A panel has no cases, or a case lacks a figure.
    """
    cases = [case for case in record["benchmarks"] if group_of(case) == "model"]
    missing = PANELS.keys() - {case["params"]["varied"] for case in cases}
    if missing:
        raise InputError(
            f"there must be cases of bench_model.py for each size, got none for {min(missing)}"
        )
    with mpl.rc_context({**STYLE, "svg.hashsalt": "model"}):
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        axes = figure.subplots(1, len(PANELS), sharey=True)
        for panel, (varied, title) in zip(axes, PANELS.items(), strict=True):
            for precision, colour in PRECISIONS.items():
                shown = [
                    case
                    for case in cases
                    if case["params"]["varied"] == varied and precision in case["name"]
                ]
                if not shown:
                    continue  # the machine only emulates this precision
                shown.sort(key=lambda case: case["params"]["value"])
                values = [case["params"]["value"] for case in shown]
                for key, style, label in (
                    ("milliseconds_per_clip", "o-", precision),
                    ("floor_milliseconds_per_clip", ":", f"{precision}, arithmetic alone"),
                ):
                    times = [number(case, "extra_info", key) for case in shown]
                    panel.plot(values, times, style, color=colour, markersize=3, label=label)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values, [str(value) for value in values], minor=False)
            panel.set_xlabel(title)
            panel.spines[["top", "right"]].set_visible(False)
        axes[0].set_ylabel("ms a clip, one step")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4,
                      frameon=False)  # fmt: skip
        figure.savefig(path, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    records.run(partial(plot.main, __doc__, draw))
