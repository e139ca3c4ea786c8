"""Draw a benchmark record: clips a second of every candidate at the AST's convention, log scale.

python -m bench.plot RECORD.json docs/fbank.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.table import Column, read_cases, rows_of

COLUMNS = {Column(64, 1): 1.0, Column(64, 2): 0.55}
"""What is drawn, and how opaque."""

OURS, THEIRS = "#e8590c", "#868e96"
INK = "#7d848b"
"""For text: 4 to 1 or better against both white and GitHub's dark background."""

STYLE = {
    "svg.fonttype": "none",  # the reader's own sans-serif; smaller, and can be searched
    "svg.hashsalt": "fbank",  # the same bytes for the same record
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
}


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the plot, on no background."""
    cases = [
        case
        for case in read_cases(record)
        if case.preset == "ast" and case.dtype == "float32" and case.column in COLUMNS
    ]
    rows = rows_of(cases)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8, 0.6 + 0.55 * len(rows)), layout="constrained")
        axes = figure.add_subplot(xscale="log")
        for place, ((_, name, _), row) in enumerate(rows.items()):
            for (column, opacity), shift in zip(COLUMNS.items(), (-0.19, 0.19), strict=True):
                if column not in row:
                    continue
                rate, y = 1e6 / row[column].microseconds, place + shift
                axes.barh(y, rate, 0.36, color=THEIRS if name else OURS, alpha=opacity)
                text = f"{rate:,.0f}"
                if not name:
                    text += f", {column.threads} thread{'s' * (column.threads > 1)}"
                axes.annotate(
                    text, (rate, y), (4, 0), textcoords="offset points", va="center", fontsize=8
                )
        axes.set_yticks(range(len(rows)), [name or "ours" for _, name, _ in rows])
        axes.invert_yaxis()
        axes.margins(x=0.22)
        axes.set_xlabel("clips of 5 s a second, in batches of 64")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, transparent=True, metadata={"Date": None})


def main(description: str | None, draw: Callable[[dict[str, Any], Path], None]) -> None:
    """Draw the record that the command line names."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("record", type=Path)
    parser.add_argument("svg", type=Path)
    args = parser.parse_args()
    draw(json.loads(args.record.read_text(encoding="utf-8")), args.svg)


if __name__ == "__main__":
    main(__doc__, draw)
