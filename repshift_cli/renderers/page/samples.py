"""Raw samples, case by case: in the order taken, and how they are spread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repshift_cli.renderers.figures.shapes import Sampled, Samples, drift, number, quantile, shortened
from repshift_cli.renderers.page.drawing import LETTER, SIDE, WIDTH, Palette, line, rect, svg, text
from repshift_cli.renderers.page.markup import Markup, tag
from repshift_cli.renderers.page.scales import Scale

ROW, TOP, BINS, GAP = 48.0, 24.0, 24, 12.0
LONGEST = 32
SPREAD = 110.0
"""The width of the right panel."""
MOST_DOTS = 600
TRIMMED = 0.02
"""This share of the samples at either end may lie outside a row, so that one outlier does not flatten the rest."""


def samples(figure: Samples, palette: Palette) -> Markup:
    """A row for each case, on a scale of its own."""
    left = SIDE + LONGEST * LETTER + 8
    right = WIDTH - SIDE - SPREAD - GAP
    heads = [text(left, 14, "in the order taken", class_="tick"), text(right + GAP, 14, "spread", class_="tick")]
    rows = [
        part for i, row in enumerate(figure.rows) for part in _row(row, figure, TOP + ROW * i, left, right, palette)
    ]
    return svg(TOP + ROW * len(figure.rows) + 6, heads, rows, name=figure.title)


def _row(row: Sampled, figure: Samples, top: float, left: float, right: float, palette: Palette) -> Iterator[Markup]:
    ordered, colour = sorted(row.values), palette.colour(row.group)
    middle = quantile(ordered, 0.5)
    low, high = quantile(ordered, TRIMMED), quantile(ordered, 1 - TRIMMED)
    room = (high - low) * 0.1 or abs(middle) * 0.01 or 1.0
    y = Scale(low - room, high + room, top + ROW - 6, top + 2)
    tip = f"{row.label}: {len(ordered)} samples, median {number(middle)} {figure.axis.unit}, "
    tip += f"{number(ordered[0])} to {number(ordered[-1])}, second half / first {drift(row.values):.3f}"
    yield rect(left, top, WIDTH - SIDE - left, ROW - 4, "panel", data_tip=tip)
    yield text(left - 8, top + 16, shortened(row.label, LONGEST), "end", "tick")
    yield text(left - 8, top + 32, f"{number(middle)} {figure.axis.unit}", "end", "value")
    yield line(left, y(middle), WIDTH - SIDE, y(middle), "grid")
    yield tag("path", d=_dots(row.values, left, right, y), class_=f"raw {colour}")
    yield from _spread(ordered, y, right + GAP, colour)


def _dots(values: Sequence[float], left: float, right: float, y: Scale) -> str:
    """Every sample as a dot, of very many each n-th."""
    every = -(-len(values) // MOST_DOTS)
    step = (right - left) / max(1, len(values))
    return "".join(f"M{left + step * (i + 0.5):.1f} {y(v):.1f}h0" for i, v in enumerate(values) if i % every == 0)


def _spread(ordered: Sequence[float], y: Scale, left: float, colour: str) -> Iterator[Markup]:
    """A histogram that lies along the same axis."""
    size = (y.high - y.low) / BINS
    counts = [0] * BINS
    for v in ordered:
        counts[min(BINS - 1, max(0, int((v - y.low) / size)))] += 1
    for i, found in enumerate(counts):
        if found:
            bottom, top = y(y.low + i * size), y(y.low + (i + 1) * size)
            yield rect(left, top, SPREAD * found / max(counts), bottom - top, f"bar {colour}")
