"""The kinds of figures as records: whoever draws one adds nothing to what stands here, and each gives its table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from repshift_cli.renderers.sheets.cells import MISSING

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """What stands behind a figure, as text."""

    heads: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Axis:
    """What one direction of a figure tells, in which unit; `better` says which way is wanted (higher, lower).

    Of what is counted (`whole`) only whole numbers are places.
    """

    label: str
    unit: str = ""
    log: bool = False
    better: str = ""
    whole: bool = False

    @property
    def words(self) -> str:
        """`latency (ms)`."""
        return f"{self.label} ({self.unit})" if self.unit not in ("", "x") else self.label


@dataclass(frozen=True)
class Mark:
    """One value of a case with its interval. Its `group` (a variant) has one colour in all figures of a page.

    `modelled` is arithmetic, drawn hollow; `case` is the number of the case's row in the main table.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    group: str = ""
    modelled: bool = False
    case: int | None = None

    def text(self, unit: str) -> str:
        """`1.35x (1.30 to 1.40)`."""
        return with_interval(self.value, self.low, self.high, unit)

    def short(self, unit: str, dash: str = "–") -> str:
        """`1.35x (1.30–1.40)`; a dash in front of a minus would be hard to read."""
        return self.text(unit) if self.low is not None and self.low < 0 else self.text(unit).replace(" to ", dash)


@dataclass(frozen=True)
class Bars:
    """A horizontal bar for each mark, drawn from `zero`; `lines` are values to compare with."""

    title: str
    caption: str
    axis: Axis
    marks: tuple[Mark, ...]
    lines: tuple[float, ...] = ()
    zero: float = 0.0

    @property
    def table(self) -> Table:
        """Every mark with its interval."""
        rows = tuple((m.label, number(m.value), _end(m.low), _end(m.high), _kind(m)) for m in self.marks)
        return Table(("case", self.axis.words, "from", "to", "kind"), rows)


@dataclass(frozen=True)
class Point:
    """One case by two values; `front` says that no other is better in both."""

    x: Mark
    y: Mark
    front: bool = False


@dataclass(frozen=True)
class Curve:
    """Values in order, joined by a line, or by steps; without a `group` it is a quiet line of reference."""

    label: str
    points: tuple[tuple[float, float], ...]
    group: str = ""
    steps: bool = False
    marks: tuple[float, ...] = ()
    """Where along x something changes."""


@dataclass(frozen=True)
class Plane:
    """Points and curves over two axes."""

    title: str
    caption: str
    x: Axis
    y: Axis
    points: tuple[Point, ...] = ()
    curves: tuple[Curve, ...] = ()
    ticks: tuple[str, ...] = ()
    """Names of the places 0, 1, ... along x, where these are no numbers."""

    @property
    def table(self) -> Table:
        """Every point, or every value of every curve."""
        if self.points:
            rows = tuple(
                (p.x.label, p.x.text(self.x.unit), p.y.text(self.y.unit), "yes" if p.front else "no")
                for p in self.points
            )
            return Table(("case", self.x.words, self.y.words, "on the front"), rows)
        named = [(c.label, self.place(x), number(y)) for c in self.curves for x, y in c.points]
        return Table(("case", self.x.words, self.y.words), tuple(named))

    def place(self, x: float) -> str:
        """What stands at this place of the axis."""
        return self.ticks[int(x)] if self.ticks else number(x)


@dataclass(frozen=True)
class Heat:
    """Values by row and column, None where nothing was measured; coloured from `zero` on, both ways."""

    title: str
    caption: str
    axis: Axis
    down: str
    across: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[Mark | None, ...], ...]
    zero: float | None = None

    @cached_property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        values = [mark.value for row in self.cells for mark in row if mark]
        return min(values, default=0.0), max(values, default=0.0)

    def share(self, value: float) -> float:
        """Where the value lies between the lowest (0) and the highest (1), by logarithms where the axis says so."""
        at, low, high = (math.log(v) if self.axis.log else v for v in (value, *self.reach))
        return (at - low) / (high - low) if high > low else 0.5

    @property
    def table(self) -> Table:
        """The map as it is."""
        rows = tuple(
            (name, *(m.text(self.axis.unit) if m else MISSING for m in cells))
            for name, cells in zip(self.rows, self.cells, strict=True)
        )
        return Table((f"{self.down} \\ {self.across}", *self.columns), rows)


@dataclass(frozen=True)
class Stack:
    """One bar made of parts, by name in the order drawn."""

    label: str
    parts: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        return sum(value for _, value in self.parts)


@dataclass(frozen=True)
class Stacks:
    """Bars made of parts; upright where they follow one another along the model's depth."""

    title: str
    caption: str
    axis: Axis
    stacks: tuple[Stack, ...]
    upright: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that occur, in their order."""
        return tuple(dict.fromkeys(name for stack in self.stacks for name, _ in stack.parts))

    @property
    def table(self) -> Table:
        """The parts of every bar, and their sum."""
        rows = []
        for stack in self.stacks:
            found = dict(stack.parts)
            parts = (number(found[n]) if n in found else MISSING for n in self.names)
            rows.append((stack.label, *parts, number(stack.total)))
        return Table((self.axis.words, *self.names, "all"), tuple(rows))


@dataclass(frozen=True)
class Sampled:
    """The raw samples of a case in the order taken, `per_round` of them in each round."""

    label: str
    values: tuple[float, ...]
    per_round: int = 1
    group: str = ""


@dataclass(frozen=True)
class Samples:
    """Raw samples, case by case: their order and how they are spread."""

    title: str
    caption: str
    axis: Axis
    rows: tuple[Sampled, ...]

    @property
    def table(self) -> Table:
        """Of every case the number of samples, quartiles, and the second half's median over the first's."""
        heads = (
            "case",
            "samples",
            "least",
            "lower quartile",
            "median",
            "upper quartile",
            "most",
            "second half / first",
        )
        return Table(heads, tuple(_summary(row) for row in self.rows))


Figure = Bars | Plane | Heat | Stacks | Samples


def _summary(row: Sampled) -> Row:
    ordered = sorted(row.values)
    ends = (quantile(ordered, q) for q in (0, 0.25, 0.5, 0.75, 1))
    return (row.label, str(len(ordered)), *map(number, ends), f"{drift(row.values):.3f}")


def drift(values: Sequence[float]) -> float:
    """The median of the second half of the samples over that of the first."""
    middle = len(values) // 2
    halves = [sorted(half) for half in (values[:middle], values[middle:]) if half]
    first, second = quantile(halves[0], 0.5), quantile(halves[-1], 0.5)
    return second / first if first else math.nan


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which this share of the ordered values lies, between two of them in proportion."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    rest = place - low
    return ordered[low] if not rest else ordered[low] * (1 - rest) + ordered[low + 1] * rest


# --- in words ---------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 4) -> str:
    """A number with so many digits: `0.9877`, `141.2`, `1,234,567`, `2.1e-05`."""
    if not value or not math.isfinite(value):
        return "0" if not value else str(value)
    if abs(value) < 1e-3 or abs(value) >= 1e12:
        return f"{value:.{digits - 2}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def with_interval(value: float, low: float | None, high: float | None, unit: str) -> str:
    """`1.35x (1.30 to 1.40)`, `141.2 ms`."""
    tail = unit if unit in ("x", "%") else f" {unit}" if unit else ""
    ends = "" if low is None or high is None else f" ({number(low)} to {number(high)})"
    return f"{number(value)}{tail}{ends}"


def shortened(words: str, letters: int, gap: str = "…") -> str:
    """The words, their middle left out where they are longer than so many letters."""
    if len(words) <= letters:
        return words
    head = max(0, (letters - 1) * 2 // 3)
    return f"{words[:head]}{gap}{words[len(words) - max(0, letters - 1 - head) :]}"[:letters]


def _end(value: float | None) -> str:
    return MISSING if value is None else number(value)


def _kind(mark: Mark) -> str:
    return "modelled" if mark.modelled else "measured"
