"""Heat maps: a value in every cell, coloured by how far it lies from where nothing is won."""

from __future__ import annotations

import math
from collections.abc import Iterator

from repshift_cli.renderers.figures.shapes import Heat, Mark, number, shortened
from repshift_cli.renderers.page.drawing import LETTER, SIDE, WIDTH, rect, svg, text
from repshift_cli.renderers.page.markup import Markup
from repshift_cli.renderers.sheets.cells import MISSING

ROW, TOP = 26.0, 44.0
DEEPEST = 0.8
"""The opacity of the strongest colour: the figure on it stays legible."""


def heat(figure: Heat) -> Markup:
    """Rows and columns with the figures in their cells; a light one's interval holds the zero."""
    left = SIDE + min(34, max(map(len, (*figure.rows, figure.down)))) * LETTER + 10
    step = min(110.0, (WIDTH - left - SIDE) / len(figure.columns))
    drawn = [
        text(left - 10, TOP - 8, figure.down, "end", "axis"),
        text(left, 14, figure.across, "start", "axis"),
        *(
            text(left + step * (i + 0.5), TOP - 8, shortened(name, int(step // LETTER)), "middle", "tick")
            for i, name in enumerate(figure.columns)
        ),
    ]
    for i, (name, cells) in enumerate(zip(figure.rows, figure.cells, strict=True)):
        y = TOP + ROW * i
        drawn.append(text(left - 10, y + ROW / 2 + 4, shortened(name, 34), "end", "tick"))
        for j, mark in enumerate(cells):
            drawn += _cell(figure, mark, (name, figure.columns[j]), left + step * j, y, step)
    return svg(TOP + ROW * len(figure.rows) + 10, drawn, name=figure.title)


def _cell(figure: Heat, mark: Mark | None, at: tuple[str, str], x: float, y: float, step: float) -> Iterator[Markup]:
    place = f"{figure.down} {at[0]}, {figure.across} {at[1]}"
    if mark is None:
        yield rect(x + 1, y + 1, step - 2, ROW - 2, "cell", data_tip=f"{place}: not measured", fill_opacity=0)
        yield text(x + step / 2, y + ROW / 2 + 4, MISSING, "middle", "tick")
        return
    tone, strength = _tone(figure, mark)
    yield rect(
        x + 1,
        y + 1,
        step - 2,
        ROW - 2,
        f"cell {tone}",
        fill_opacity=round(strength, 2),
        data_tip=f"{place}: {mark.text(figure.axis.unit)}",
        data_value=f"{mark.value:.6g}",
        data_case=mark.case,
    )
    words = number(mark.value, 3) + ("x" if figure.axis.unit == "x" else "")
    yield text(x + step / 2, y + ROW / 2 + 4, words, "middle", "in-cell")


def _tone(figure: Heat, mark: Mark) -> tuple[str, float]:
    """The class of the cell's colour and how strong it is."""
    values = [m.value for row in figure.cells for m in row if m]
    if figure.zero is None:
        low, high = min(values), max(values)
        share = (mark.value - low) / (high - low) if high > low else 0.5
        share = share if figure.axis.better != "lower" else 1 - share
        return "won", 0.06 + (DEEPEST - 0.06) * share
    far = [abs(math.log(v / figure.zero)) for v in values if v > 0]
    size = abs(math.log(mark.value / figure.zero)) / (max(far) or 1.0) if mark.value > 0 else 1.0
    if mark.low is None or mark.high is None or mark.low <= figure.zero <= mark.high:
        return "even", 0.08
    wins = (mark.value > figure.zero) == (figure.axis.better != "lower")
    return ("won" if wins else "lost"), 0.12 + (DEEPEST - 0.12) * size
