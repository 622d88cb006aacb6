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
LONGEST = 22
"""Letters of a column's name that stands aslant."""
MOST_HIGH_ROWS = 16
"""A map of more rows than this has low ones."""
SLANT = math.radians(40)
DEEPEST, PALEST = 0.8, 0.06
"""The opacity of the strongest colour, on which the figure stays legible, and of the weakest."""
LEGIBLE, ASLANT = 44.0, 14.0
"""The width from which on a cell has its figure in it (else the tip has it), and a name above it aslant."""


@dataclass(frozen=True)
class _Frame:
    """Where the cells are: the corner, a cell's width and height, and whether the names above stand aslant."""

    left: float
    top: float
    step: float
    row: float
    aslant: bool


def heat(figure: Heat) -> Markup:
    """Rows and columns with the figures in their cells; a dashed one's interval holds the zero."""
    left = SIDE + min(34, max(map(len, (*figure.rows, figure.down)))) * LETTER + 10
    step = min(110.0, (WIDTH - left - SIDE) / len(figure.columns))
    longest = max(map(len, figure.columns))
    aslant = step >= ASLANT and longest * LETTER > step
    top = 30 + min(longest, LONGEST) * LETTER * math.sin(SLANT) if aslant else TOP
    frame = _Frame(left, top, step, ROW if len(figure.rows) <= MOST_HIGH_ROWS else LOW_ROW, aslant)
    tone, drawn = _Tone(figure), list(_heads(figure, frame))
    for i, (name, cells) in enumerate(zip(figure.rows, figure.cells, strict=True)):
        y = top + frame.row * i
        drawn.append(text(left - 10, y + frame.row / 2 + 4, shortened(name, 34), "end", "tick"))
        for j, mark in enumerate(cells):
            place = f"{figure.down} {name}, {figure.across} {figure.columns[j]}"
            drawn += _cell(place, mark, tone, left + step * j, y, frame)
    return svg(top + frame.row * len(figure.rows) + 10, drawn, name=figure.title)


def _heads(figure: Heat, frame: _Frame) -> Iterator[Markup]:
    """What the rows and the columns are, and the columns' names, of narrow ones each n-th."""
    y = frame.top - 8
    yield text(frame.left - 10, y, figure.down, "end", "axis")
    yield text(frame.left, 14, figure.across, "start", "axis")
    every = 1 if frame.aslant else math.ceil(LEGIBLE / frame.step)
    letters = LONGEST if frame.aslant else max(1, int(frame.step * every // LETTER))
    for i, name in list(enumerate(figure.columns))[::every]:
        x, words = frame.left + frame.step * (i + 0.5), shortened(name, letters)
        if frame.aslant:
            turn = f"rotate({-math.degrees(SLANT):.0f} {x:.1f} {y:.1f})"
            yield text(x, y, words, "start", "tick", transform=turn)
        else:
            yield text(x, y, words, "middle", "tick")


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
    look, tip = f"cell {colour}", f"{place}: {mark.text(unit)}"
    value = f"{mark.value:.6g}"
    yield rect(*box, look, fill_opacity=round(strength, 2), data_tip=tip, data_value=value, data_case=mark.case)
    if legible:
        yield text(*at, number(mark.value, 3) + ("x" if unit == "x" else ""), "middle", "in-cell")


class _Tone:
    """The class of a cell's colour and how strong it is, by where its value lies among all."""

    def __init__(self, figure: Heat) -> None:
        self.figure = figure
        self._farthest = max(map(self._distance, figure.reach)) or 1.0

    def __call__(self, mark: Mark) -> tuple[str, float]:
        zero, lower_is_better = self.figure.zero, self.figure.axis.better == "lower"
        if zero is None:
            share = self.figure.share(mark.value)
            return "won", PALEST + (DEEPEST - PALEST) * (1 - share if lower_is_better else share)
        if mark.low is not None and mark.high is not None and mark.low <= zero <= mark.high:
            return "even", 0.08
        size = self._distance(mark.value) / self._farthest
        return ("won" if (mark.value > zero) != lower_is_better else "lost"), PALEST + (DEEPEST - PALEST) * size

    def _distance(self, value: float) -> float:
        """How far the value is from the zero: of ratios by their logarithms."""
        zero = self.figure.zero or 0.0
        return abs(math.log(max(value, 1e-300) / zero)) if zero > 0 else abs(value)
