"""What tables are made of: sheets of columns of cells, and what a cell says of a measurement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from repshift_cli.analysis.stats import Estimate
from repshift_cli.records import Measurement, printable, printable_line
from repshift_cli.renderers.sheets.order import is_headline

ALWAYS = 0
"""The rank of a column that is never left out."""
MISSING = "–"
REFERENCE = "ref"
"""Shown where a variant would be compared with itself."""
TOO_FEW = "too few rounds"
"""A ratio without an interval."""
BUSY = "busy"
"""A ratio of times that allow no verdict (`Record.unfit`)."""
NONE_SHOWN = "none shown"
"""A speed-up whose interval holds 1."""

SCALES = {
    "B": (("GiB", 2.0**30), ("MiB", 2.0**20), ("KiB", 2.0**10), ("B", 1.0)),
    "MAC": (("G", 1e9), ("M", 1e6), ("K", 1e3), ("", 1.0)),
}


@dataclass(frozen=True)
class Cell:
    """What one cell says, the interval being the `detail`; `tone` (good, bad, quiet, failed, skipped) is for colour
    and only repeats what the text says."""

    text: str = MISSING
    tone: str = ""
    detail: str = ""

    @property
    def line(self) -> str:
        """The whole cell on one line."""
        return f"{self.text} {self.detail}".strip()


@dataclass(frozen=True)
class Column:
    """One column: `rank` orders what is shown where space is short, `ALWAYS` first; `name` is the metric's."""

    title: str
    rank: int
    cells: tuple[Cell, ...]
    numeric: bool = False
    metric: bool = False
    name: str = ""

    @property
    def constant(self) -> str | None:
        """The one value of all cells that have one, where that is so."""
        texts = {cell.line for cell in self.cells} - {MISSING}
        return texts.pop() if len(texts) == 1 else None


@dataclass(frozen=True)
class Sheet:
    """One comparison group ready to print; `kernels` is a note for where the kernel's column has no room.

    Of the notes those that are `urgent` too are always shown, those that are `details` only where all are asked for.
    Below the last table of a run stand its plain `answer` and the lines of Python (`code`) that apply it.
    """

    header: tuple[str, ...]
    columns: tuple[Column, ...]
    kernels: str
    notes: tuple[str, ...]
    urgent: tuple[str, ...] = ()
    details: tuple[str, ...] = ()
    code: str = ""
    answer: str = ""


def printable_sheet(sheet: Sheet) -> Sheet:
    """The sheet with every text on one line and nothing in it that could steer a terminal or a log."""
    columns = tuple(
        replace(c, title=printable_line(c.title), cells=tuple(map(_printable_cell, c.cells))) for c in sheet.columns
    )
    texts = (sheet.header, sheet.notes, sheet.urgent, sheet.details)
    header, notes, urgent, details = (tuple(map(printable_line, lines)) for lines in texts)
    kernels, answer = printable_line(sheet.kernels), printable_line(sheet.answer)
    return Sheet(header, columns, kernels, notes, urgent, details, printable(sheet.code), answer)


def _printable_cell(cell: Cell) -> Cell:
    return replace(cell, text=printable_line(cell.text), detail=printable_line(cell.detail))


def scale(unit: str, values: Sequence[float]) -> tuple[str, float]:
    """The unit that suits the largest of the values, and what to divide by: bytes as MiB, MACs as G."""
    if unit not in SCALES:
        return unit, 1.0
    largest = max(map(abs, values))
    return next((scale for scale in SCALES[unit] if largest >= scale[1]), SCALES[unit][-1])


def metric_cell(measurement: Measurement | None, figure: Estimate | None, factor: float) -> Cell:
    """A measurement in its column, its figure divided by `factor`."""
    if measurement is None:
        return Cell()
    if figure is None:
        few = Cell(TOO_FEW, "quiet") if measurement.samples else Cell()
        return Cell(REFERENCE, "quiet") if measurement.reference else few
    if measurement.unit == "x":
        return _ratio_cell(figure, measurement.better)
    figure = Estimate(figure.value / factor, *(b if b is None else b / factor for b in (figure.low, figure.high)))
    if measurement.statistic == "value" or not is_headline(measurement.metric):
        figure = Estimate(figure.value)
    return _figure_cell(figure, least=4 if measurement.statistic == "value" else 3)


def _ratio_cell(figure: Estimate, better: str) -> Cell:
    """A ratio with its interval; where that holds 1, a column in which more is better says that none was shown."""
    decimals = max(_decimals(figure, least=3, floor=1.0), _decimals(Estimate(figure.value), least=2))
    if figure.low is None or figure.high is None:
        return Cell(TOO_FEW, "quiet")
    while not figure.spans(1) and 1 in (round(figure.low, decimals), round(figure.high, decimals)):
        decimals += 1  # an interval that ends beside 1 must not read as if it held it
    value = f"{figure.value:.{decimals}f}x"
    interval = f"({figure.low:.{decimals}f}–{figure.high:.{decimals}f})"
    if better != "higher":
        return Cell(value, "", interval)
    if figure.spans(1):
        return Cell(NONE_SHOWN, "quiet", interval)
    return Cell(value, "good" if figure.low > 1 else "bad", interval)


def _figure_cell(figure: Estimate, least: int) -> Cell:
    form = ".2e" if 0 < abs(figure.value) < 1e-3 else f".{_decimals(figure, least)}f"
    if figure.low is None or figure.high is None:
        return Cell(f"{figure.value:{form}}")
    return Cell(f"{figure.value:{form}}", detail=f"({figure.low:{form}}–{figure.high:{form}})")


def _decimals(figure: Estimate, least: int, floor: float = 0.0) -> int:
    """Decimals for `least` significant digits, and one more where the interval would vanish in the last."""
    size = max(abs(figure.value), floor)
    decimals = max(0, least - 1 - math.floor(math.log10(size))) if size else 0
    if figure.low is not None and figure.high is not None and figure.high - figure.low < 2 * 10**-decimals:
        decimals += 1
    return decimals
