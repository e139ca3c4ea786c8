"""The report's figures: SVG with colours from the page's style sheet (light, dark, print)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from markupsafe import Markup, escape
from matplotlib.image import imsave
from numpy.typing import NDArray

from ast_fast.report.metrics import ReliabilityBin
from ast_fast_kernels.files.text import one_line, one_name

NUM_COLOURS = 8
"""Number of line colours in the page's style sheet: `--series-1` and so on."""

Line = tuple[str, Sequence[float], Sequence[float]]
"""Name, x and y of one line of a chart."""


def line_chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, percent: bool = False
) -> Markup:
    """Return a chart of a few lines over a common x axis, with a legend below.

    Args:
        lines: The lines, each in the next colour; points that are not finite are left out.
        x_label: What x counts.
        y_label: What y measures.
        percent: Whether y is a share of 1, shown from 0 to 100 %.
    """
    kept = [(name, _finite(xs, ys)) for name, xs, ys in lines]
    xs = [x for _, points in kept for x, _ in points]
    ys = [y for _, points in kept for _, y in points]
    if not xs:
        return Markup('<p class="note">No epoch was recorded.</p>')
    y_ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if percent else _ticks(0.0, max(ys), 5)
    plane = _Plane(min(xs), max(max(xs), min(xs) + 1), max(y_ticks[-1], max(ys)) or 1.0)
    parts = []
    for tick in y_ticks:
        parts += plane.y_tick(tick, f"{100 * tick:.0f} %" if percent else f"{tick:g}")
    for tick in _ticks(min(xs), max(xs), 6, whole=True):
        parts.append(plane.x_tick(tick, f"{tick:g}"))
    parts.append(plane.x_title(x_label))
    for index, (_, points) in enumerate(kept):
        parts += plane.line(points, _colour(index))
    title = Markup('<div class="chart-title">{}</div>').format(y_label)
    return (
        Markup('<div class="chart">')
        + title
        + _svg(plane.width, plane.height, parts, f"{y_label} over {x_label}")
        + legend([name for name, _ in kept])
        + Markup("</div>")
    )


@dataclass(frozen=True)
class _Plane:
    """The plane of a line chart, from (x_low, 0) to (x_high, y_high), and what is drawn on it."""

    x_low: float
    x_high: float
    y_high: float
    width: ClassVar = 460
    height: ClassVar = 270
    left: ClassVar = 46
    right: ClassVar = 12
    top: ClassVar = 14
    bottom: ClassVar = 40

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return a point's place in the drawing."""
        across = (x - self.x_low) / (self.x_high - self.x_low)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - y / self.y_high * (self.height - self.top - self.bottom),
        )

    def y_tick(self, value: float, label: str) -> list[str]:
        """Draw a grid line with its label."""
        _, y = self.place(self.x_low, value)
        ends = f'x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"'
        return [f'<line class="grid" {ends}/>', _text(self.left - 6, y + 3.5, label, "end")]

    def x_tick(self, value: float, label: str) -> str:
        """Draw a label below the x axis."""
        x, _ = self.place(value, 0)
        return _text(x, self.height - self.bottom + 16, label, "middle")

    def x_title(self, title: str) -> str:
        """Draw what x counts."""
        middle = (self.left + self.width - self.right) / 2
        return _text(middle, self.height - 6, title, "middle", "axis")

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> list[str]:
        """Draw a line through points, and the points themselves if they are few."""
        placed = [self.place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts = []
        if len(placed) > 1:
            parts.append(f'<polyline class="line" style="stroke:{colour}" points="{path}"/>')
        if len(placed) <= 12:
            parts.extend(
                f'<circle r="2.4" style="fill:{colour}" cx="{x:.1f}" cy="{y:.1f}"/>'
                for x, y in placed
            )
        return parts


def legend(names: Iterable[str]) -> Markup:
    """Return the names, each beside its colour in the charts."""
    items = (
        Markup('<li><span class="swatch" style="background:{}"></span>{}</li>').format(
            _colour(index), name
        )
        for index, name in enumerate(names)
    )
    return Markup('<ul class="legend">') + Markup("").join(items) + Markup("</ul>")


def reliability_diagram(bins: Sequence[ReliabilityBin], *, title: str) -> Markup:
    """Return the share of right clips by the probability of their class, and the clips' number.

    A bar is the share that is right, the mark across it the mean probability: where the two meet,
    probabilities can be taken at their word.

    Args:
        bins: Bins from 0 to 1; those without clips are left out.
        title: What the probabilities are.
    """
    plane, strip, most = _Plane(0.0, 1.0, 1.0), 44, max(row.count for row in bins)
    foot = plane.height + 22 + strip
    parts = []
    for tick in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        parts += plane.y_tick(tick, f"{100 * tick:.0f} %")
        parts.append(plane.x_tick(tick, f"{100 * tick:.0f}"))
    (left, bottom), (right, top) = plane.place(0, 0), plane.place(1, 1)
    diagonal = f'x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"'
    parts.append(f'<line class="chance" {diagonal}/>')
    parts.append(plane.x_title("probability of the predicted class, %"))
    parts.append(_text(left - 6, foot - 2, "clips", "end", "axis"))
    for row in bins:
        if row.confidence is None or row.accuracy is None:
            continue
        (x, y), (end, mark) = (
            plane.place(row.low, row.accuracy),
            plane.place(row.high, row.confidence),
        )
        tall = strip * row.count / most
        level = f'x1="{x:.1f}" x2="{end:.1f}" y1="{mark:.1f}" y2="{mark:.1f}"'
        parts.append(
            _titled(
                f"{row.count} clips from {100 * row.low:.0f} to {100 * row.high:.0f} %: mean "
                f"probability {100 * row.confidence:.1f} %, right {100 * row.accuracy:.1f} %",
                _rect("bar", x + 1, y, end - x - 2, bottom - y, style="fill-opacity:0.6"),
                f'<line class="mean" {level}/>',
                _rect("count", x + 1, foot - tall, end - x - 2, tall),
                _text((x + end) / 2, foot - tall - 3, str(row.count), "middle", size=9),
            )
        )
    return (
        Markup('<div class="chart"><div class="chart-title">{}</div>').format(title)
        + _svg(plane.width, foot + 2, parts, f"{title}: share of right clips by probability")
        + Markup("</div>")
    )


def fold_chart(accuracies: dict[int, float], mean: float, chance: float) -> Markup:
    """Return a bar for each fold's accuracy, and lines for the mean and for chance.

    Args:
        accuracies: Accuracy by fold, from 0 to 1.
        mean: Mean accuracy over the folds.
        chance: Accuracy of guessing.
    """
    width, left, right, row, top = 470, 52, 72, 28, 22
    height = top + row * len(accuracies) + 4
    span = width - left - right
    parts = []
    for index, (fold, accuracy) in enumerate(accuracies.items()):
        y = top + index * row
        parts.append(_text(left - 10, y + 16, f"Fold {fold}", "end"))
        parts.append(
            _rect("track", left, y + 4, span, 17) + _rect("bar", left, y + 4, span * accuracy, 17)
        )
        parts.append(
            _text(width - right + 8, y + 16.5, f"{100 * accuracy:.1f} %", "start", "strong")
        )
    marks = [(mean, f"mean {100 * mean:.1f} %", "mean")]
    if abs(mean - chance) > 0.15:
        marks.append((chance, f"chance {100 * chance:.0f} %", "chance"))
    for value, label, style in marks:
        x = left + span * value
        parts.append(
            f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 2}" y2="{height - 2}"/>'
        )
        anchor = "start" if value < 0.1 else "end" if value > 0.9 else "middle"
        parts.append(_text(x, top - 8, label, anchor, "axis"))
    return _svg(width, height, parts, "Accuracy of each fold")


def confusion_matrix(matrix: NDArray[np.int64], names: Sequence[str]) -> Markup:
    """Return the confusion matrix: a row for each true class, cells shaded by share of the row.

    The number of classes sets the size of the cells: 10 classes fill a column of text, and the
    cells of 50 still have room for their counts.

    Args:
        matrix: Counts, shape (num_classes, num_classes), true classes down, predicted across.
        names: Class names in the matrix's order.
    """
    names = [one_name(name) for name in names]
    count = len(names)
    cell, font = (34, 12.5) if count <= 12 else (24, 10.5) if count <= 25 else (16, 9)
    label_font = max(font - 0.5, 9.5)
    longest = max(len(name) for name in names) * label_font * 0.58
    left = int(max(longest, 84)) + 14
    top = int(longest * 0.8) + 26
    size = cell * count
    parts = [
        _rect("track", left, top, size, size),
        _text(left - 8, top - 8, "true ↓ as →", "end", "axis"),
    ]
    for index, name in enumerate(names):
        offset = (index + 0.5) * cell
        y = top + offset + label_font * 0.35
        parts.append(_text(left - 7, y, name, "end", size=label_font))
        x = left + offset + label_font * 0.2
        turn = f'transform="rotate(-52 {x:.1f} {top - 7})"'
        parts.append(_text(x, top - 7, name, "start", size=label_font, extra=turn))
    for line in range(0, count + 1, 1 if count <= 25 else 5):
        across = f"M{left} {top + line * cell}h{size}"
        down = f"M{left + line * cell} {top}v{size}"
        parts.append(f'<path class="grid" d="{across}{down}"/>')
    totals = matrix.sum(axis=1)
    for row, column in np.argwhere(matrix > 0):
        value, total = int(matrix[row, column]), int(totals[row])
        shapes = _matrix_cell(
            left + column * cell, top + row * cell, cell, font, value, total, hit=row == column
        )
        title = f"{names[row]} taken for {names[column]}: {value} of {total}"
        parts.append(_titled(title, *shapes))
    width = left + size + int(longest * 0.62) + 8
    return _svg(width, top + size + 8, parts, "Confusion matrix", natural=True)


def _matrix_cell(
    x: float, y: float, cell: int, font: float, value: int, total: int, *, hit: bool
) -> tuple[str, str]:
    """Draw a cell at (x, y): its shade by the share of its row, and its count."""
    share = value / total
    opacity = f"fill-opacity:{0.12 + 0.88 * share:.2f}"
    shade = _rect("hit" if hit else "miss", x + 0.5, y + 0.5, cell - 1, cell - 1, style=opacity)
    style = "on" if share > 0.55 else ""
    middle = y + cell / 2 + font * 0.35
    return shade, _text(x + cell / 2, middle, str(value), "middle", style, size=font)


def stage_bar(shares: Sequence[tuple[str, float]]) -> Markup:
    """Return one bar divided into shares.

    Args:
        shares: Names and shares; the shares add up to 1.
    """
    width, height, at = 900, 34, 0.0
    parts = []
    for index, (name, share) in enumerate(shares):
        span = width * share
        parts.append(
            f"<g><title>{escape(f'{name}: {100 * share:.1f} %')}</title>"
            f'<rect x="{at:.1f}" y="0" width="{max(span, 0.0):.1f}" height="{height}" '
            f'style="fill:{_colour(index)}"/></g>'
        )
        if span > 8.5 * len(name) + 50:
            parts.append(
                _text(at + span / 2, 21, f"{name} {100 * share:.0f} %", "middle", "on-colour")
            )
        at += span
    return _svg(width, height, parts, "Share of each stage of the run's time")


def spectrogram(
    log_mel: NDArray[np.floating],
    *,
    seconds: float,
    centres: NDArray[np.floating],
    value_range: tuple[float, float],
) -> Markup:
    """Return log-mel features as an image, with axes in seconds and in Hz of the mel bins.

    Args:
        log_mel: Features, shape (num_frames, num_mel_bins).
        seconds: Time from the first frame to the last frame's end.
        centres: Centre frequency of each mel bin in Hz, shape (num_mel_bins,).
        value_range: Values at the dark and at the bright end of the colour scale.
    """
    left, top, inner_width, inner_height = 40, 6, 270, 104
    num_bins = len(centres)
    buffer = io.BytesIO()
    image = np.ascontiguousarray(log_mel.T[::-1])
    low, high = value_range
    imsave(
        buffer, image, vmin=low, vmax=high, cmap="magma", format="webp", pil_kwargs={"quality": 70}
    )
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    parts = [
        f'<image x="{left}" y="{top}" width="{inner_width}" height="{inner_height}" '
        f'preserveAspectRatio="none" href="data:image/webp;base64,{encoded}"/>'
    ]
    for bin_index, label in _frequency_ticks(centres):
        y = top + inner_height * (1 - (bin_index + 0.5) / num_bins)
        parts.append(f'<line class="tick" x1="{left - 4}" x2="{left}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(left - 6, y + 3.3, label, "end", size=9.5))
        parts.append(
            _text(left + inner_width + 5, y + 3.3, str(bin_index), "start", "axis", size=9)
        )
    for tick in _ticks(0, seconds, 5):
        x = left + inner_width * tick / seconds
        bottom = top + inner_height
        parts.append(
            f'<line class="tick" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        )
        parts.append(_text(x, bottom + 14, f"{tick:g} s", "middle", size=9.5))
    return _svg(left + inner_width + 26, top + inner_height + 20, parts, "Log-mel features")


def _frequency_ticks(centres: NDArray[np.floating]) -> list[tuple[int, str]]:
    """Return the mel bins nearest to round frequencies, far enough apart for labels."""
    ticks: list[tuple[int, str]] = []
    for hertz in (125, 250, 500, 1000, 2000, 4000, 8000, 16000):
        index = int(np.argmin(np.abs(centres - hertz)))
        near = abs(float(centres[index]) - hertz) < 0.15 * hertz
        apart = not ticks or index - ticks[-1][0] >= len(centres) / 9
        if near and apart:
            ticks.append((index, f"{hertz / 1000:g} kHz" if hertz >= 1000 else f"{hertz} Hz"))
    return ticks


def _ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Return about `count` round numbers from low to high."""
    span = max(high - low, 1e-9)
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 10) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]


def _colour(index: int) -> str:
    return f"var(--series-{index % NUM_COLOURS + 1})"


def _text(
    x: float, y: float, text: str, anchor: str, style: str = "", *, size: float = 0, extra: str = ""
) -> str:
    font = f' style="font-size:{size:g}px"' if size else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}"{font} {extra}>'
        f"{escape(one_line(text))}</text>"
    )


def _rect(name: str, x: float, y: float, width: float, height: float, *, style: str = "") -> str:
    return (
        f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'style="{style}"/>'
    )


def _titled(title: str, *parts: str) -> str:
    """Group shapes with a text that the browser shows as a tooltip."""
    return f"<g><title>{escape(one_line(title))}</title>{''.join(parts)}</g>"


def _svg(
    width: float, height: float, parts: Iterable[str], label: str, *, natural: bool = False
) -> Markup:
    size = f'width="{width}" height="{height}"' if natural else 'width="100%"'
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" {size} role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg>"
    )
