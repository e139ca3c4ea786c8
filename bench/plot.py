"""Draw the filterbank's record: clips per second of each library, in batches of 64 on two threads.

python -m bench.plot RECORD.json docs/fbank.svg

The picture is plain SVG without a background; its colours are legible on white and on GitHub's dark
page.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from ast_fast_kernels.errors import InputError
from bench import records
from bench.table import Case, Column, read_cases

COLUMN = Column(64, 2)
"""The column of the record to draw."""
OTHER_CONVENTIONS = {"kaldi-native-fbank": ", 80 bins"}
"""Libraries that cannot follow the AST's convention, with a note of what they do instead."""
NAMES = {
    "": "ast-fast",
    "asrfront": "asrfront (C)",
    "torch-compile": "torch.compile",
    "torch-eager": "plain torch, batched",
    "torchaudio-kaldi.fbank": "torchaudio",
    "transformers-ASTFeatureExtractor": "transformers (numpy)",
}
"""Names of candidates in the picture, if the record's name says too little."""
NOT_DRAWN = ("reference-batched", "reference-clip-by-clip")
"""Our reference, which is the oracle of the tests."""

OURS, THEIRS = "#e8590c", "#868e96"
INK = "#7d848b"
"""Colour of text: contrast of at least 4 to 1 against white and GitHub's dark background."""
STYLE = {
    "svg.fonttype": "none",  # uses the reader's font; smaller, and can be searched
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.edgecolor": INK,
}
"""For pictures that matplotlib draws (plot_model.py)."""

WIDTH, LEFT, RIGHT = 830, 215, 80
TOP, ROW, BAR = 36, 27, 18
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture."""
    path.write_text(svg(candidates(record)), encoding="utf-8")


def candidates(record: dict[str, Any]) -> list[Case]:
    """Return the candidates to draw, from fast to slow.

    Raises:
        InputError: There are none.
    """
    found = [
        case
        for case in read_cases(record)
        if case.dtype == "float32"
        and case.column == COLUMN
        and case.name not in NOT_DRAWN
        and (case.preset == "ast" or case.name in OTHER_CONVENTIONS)
    ]
    if not found:
        raise InputError(f"there must be cases of FBANK with {COLUMN}, got none")
    return sorted(found, key=lambda case: case.microseconds)


def svg(cases: list[Case]) -> str:
    """Return the picture of these candidates, one bar each."""
    height = TOP + ROW * len(cases) + 4
    words = "Clips per second from waveform to log-mel: 5 s each, batches of 64, two cores"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="{words}" '
            f'font-family="{FONT}" font-size="14" fill="{INK}">',
            f'<text x="0" y="18" font-size="15" font-weight="600">{words}</text>',
            *_bars(cases),
            "</svg>\n",
        ]
    )


def _bars(cases: list[Case]) -> Iterator[str]:
    scale = (WIDTH - LEFT - RIGHT) * min(case.microseconds for case in cases)
    for place, case in enumerate(cases):
        y = TOP + ROW * place
        middle = y + BAR / 2 + 5
        length = max(scale / case.microseconds, 2)
        name = NAMES.get(case.name, case.name) + OTHER_CONVENTIONS.get(case.name, "")
        weight = "" if case.name else f' font-weight="700" fill="{OURS}"'
        yield (
            f'<text x="{LEFT - 12}" y="{middle:g}" text-anchor="end"{weight}>{escape(name)}</text>'
            f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="3" '
            f'fill="{THEIRS if case.name else OURS}"/>'
            f'<text x="{LEFT + length + 8:.1f}" y="{middle:g}"{weight}>'
            f"{1e6 / case.microseconds:,.0f}</text>"
        )


def main(description: str | None, draw: Callable[[dict[str, Any], Path], None]) -> None:
    """Draw the record that the command line names.

    Raises:
        InputError: It is no such record, or the picture cannot be written.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("record", type=Path)
    parser.add_argument("svg", type=Path)
    args = parser.parse_args()
    if args.svg.suffix != ".svg":
        raise InputError(f"the picture's name must end in .svg, got {args.svg}")
    record = records.read_record(args.record)
    try:
        records.write(args.svg, partial(draw, record))
    except InputError as error:
        raise InputError(f"{args.record} as {args.svg}: {error}") from error


if __name__ == "__main__":
    records.run(partial(main, __doc__, draw))
