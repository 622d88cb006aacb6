"""Heat maps: a value in every cell, coloured by how far it lies from where nothing is won."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from repshift_cli.renderers.figures.shapes import Heat, Mark, number, shortened
from repshift_cli.renderers.page.drawing import LETTER, SIDE, WIDTH, rect, svg, text
from repshift_cli.renderers.page.markup import Markup
from repshift_cli.renderers.sheets.cells import MISSING

ROW, LOW_ROW, TOP = 26.0, 18.0, 44.0
MOST_HIGH_ROWS = 16
"""A map of more rows than this has low ones."""
DEEPEST, PALEST = 0.8, 0.06
"""The opacity of the strongest colour, on which the figure stays legible, and of the weakest."""
LEGIBLE = 28.0
"""The width from which on a cell has its figure in it; where cells are narrower, the tip and the table have it."""


@dataclass(frozen=True)
class _Frame:
    """Where the cells are: the left edge, a cell's width and height."""

    left: float
    step: float
    row: float


def heat(figure: Heat) -> Markup:
    """Rows and columns with the figures in their cells; a dashed one's interval holds the zero."""
    left = SIDE + min(34, max(map(len, (*figure.rows, figure.down)))) * LETTER + 10
    step = min(110.0, (WIDTH - left - SIDE) / len(figure.columns))
    frame = _Frame(left, step, ROW if len(figure.rows) <= MOST_HIGH_ROWS else LOW_ROW)
    tone, drawn = _Tone(figure), list(_heads(figure, frame))
    for i, (name, cells) in enumerate(zip(figure.rows, figure.cells, strict=True)):
        y = TOP + frame.row * i
        drawn.append(text(left - 10, y + frame.row / 2 + 4, shortened(name, 34), "end", "tick"))
        for j, mark in enumerate(cells):
            place = f"{figure.down} {name}, {figure.across} {figure.columns[j]}"
            drawn += _cell(place, mark, tone, left + step * j, y, frame)
    return svg(TOP + frame.row * len(figure.rows) + 10, drawn, name=figure.title)


def _heads(figure: Heat, frame: _Frame) -> Iterator[Markup]:
    """What the rows and the columns are, and the columns' names, of narrow ones each n-th."""
    yield text(frame.left - 10, TOP - 8, figure.down, "end", "axis")
    yield text(frame.left, 14, figure.across, "start", "axis")
    every = math.ceil(LEGIBLE / frame.step)
    letters = max(1, int(frame.step * every // LETTER))
    for i, name in list(enumerate(figure.columns))[::every]:
        yield text(frame.left + frame.step * (i + 0.5), TOP - 8, shortened(name, letters), "middle", "tick")


def _cell(place: str, mark: Mark | None, tone: _Tone, x: float, y: float, frame: _Frame) -> Iterator[Markup]:
    gap, unit = min(1.0, frame.step / 20), tone.figure.axis.unit
    box = (x + gap, y + gap, frame.step - 2 * gap, frame.row - 2 * gap)
    at, legible = (x + frame.step / 2, y + frame.row / 2 + 4), frame.step >= LEGIBLE
    if mark is None:
        yield rect(*box, "cell", data_tip=f"{place}: not measured", fill_opacity=0)
        if legible:
            yield text(*at, MISSING, "middle", "tick")
        return
    colour, strength = tone(mark)
    look = {"fill_opacity": round(strength, 2), "data_value": f"{mark.value:.6g}", "data_case": mark.case}
    yield rect(*box, f"cell {colour}", data_tip=f"{place}: {mark.text(unit)}", **look)
    if legible:
        yield text(*at, number(mark.value, 3) + ("x" if unit == "x" else ""), "middle", "in-cell")


class _Tone:
    """The class of a cell's colour and how strong it is, by where its value lies among all."""

    def __init__(self, figure: Heat) -> None:
        self.figure = figure
        values = [mark.value for row in figure.cells for mark in row if mark]
        self._low, self._high = min(values, default=0.0), max(values, default=0.0)
        self._farthest = max(map(self._distance, values), default=0.0) or 1.0

    def __call__(self, mark: Mark) -> tuple[str, float]:
        zero, lower_is_better = self.figure.zero, self.figure.axis.better == "lower"
        if zero is None:
            span = self._high - self._low
            share = (mark.value - self._low) / span if span else 0.5
            return "won", PALEST + (DEEPEST - PALEST) * (1 - share if lower_is_better else share)
        if mark.low is not None and mark.high is not None and mark.low <= zero <= mark.high:
            return "even", 0.08
        size = self._distance(mark.value) / self._farthest
        return ("won" if (mark.value > zero) != lower_is_better else "lost"), PALEST + (DEEPEST - PALEST) * size

    def _distance(self, value: float) -> float:
        """How far the value is from the zero: of ratios by their logarithms."""
        zero = self.figure.zero or 0.0
        return abs(math.log(max(value, 1e-300) / zero)) if zero > 0 else abs(value)
