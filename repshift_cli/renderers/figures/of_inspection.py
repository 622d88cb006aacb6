"""What an inspection has to show, by what its arrays say of themselves: heat maps, and courses from block to block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from repshift_cli.records.inspection import Answer, Inspection, Quantity
from repshift_cli.records.inspection import Axis as Places
from repshift_cli.renderers.figures.shapes import Axis, Curve, Figure, Heat, Mark, Plane

MOST_MAPS = 12
"""Of one array with more axes than a map has."""
MOST_CELLS = 6000
"""Of a longer map each n-th column is drawn."""
Range = tuple[str, str, float | None, float | None]


def figures(run: Inspection) -> Iterator[Figure]:
    """Answer by answer its maps, then its courses."""
    for answer in run.answers:
        known = [q for q in answer.quantities if any(v is not None and math.isfinite(v) for v in q.values)]
        for q in known:
            if q.view == "map" and len(q.axes) > 1:
                yield from _maps(answer, q)
        yield from _courses(answer, [q for q in known if q.view == "table" and not q.words])


# --- maps -------------------------------------------------------------------------------------------------------------


def _maps(answer: Answer, q: Quantity) -> Iterator[Heat]:
    """The array's last two axes, once for each place of the axes before them."""
    *before, down, across = q.axes
    size = len(down.ticks) * len(across.ticks)
    every = -(-size // MOST_CELLS)
    for number, at in enumerate(product(*(axis.ticks for axis in before))):
        values = q.values[number * size : (number + 1) * size]
        cells = tuple(tuple(map(_mark, values[i : i + len(across.ticks)][::every])) for i in _rows(values, across))
        if number < MOST_MAPS and any(mark for row in cells for mark in row):
            where = ", ".join(f"{axis.name} {tick}" for axis, tick in zip(before, at, strict=True))
            title = ", ".join(filter(None, (f"{answer.title}: {q.label}", where)))
            more = f"; each {every}th {across.name}" if every > 1 else ""
            shown = Axis(q.label, q.unit, log=_spreads(q))
            more += "; shades by logarithms" if shown.log else ""
            columns = across.ticks[::every]
            yield Heat(title, _caption([q]) + more, shown, down.name, across.name, down.ticks, columns, cells, _zero(q))


def _rows(values: Sequence[object], across: Places) -> range:
    return range(0, len(values), max(1, len(across.ticks)))


def _mark(value: float | None) -> Mark | None:
    return None if value is None or not math.isfinite(value) else Mark("", value)


def _spreads(q: Quantity) -> bool:
    """Whether the largest would leave no shade to the others: sizes, all above 0, over more than two powers of ten."""
    known = [v for v in q.values if v is not None and math.isfinite(v)]
    return q.unit != "x" and min(known) > 0 and max(known) > 100 * min(known) and q.high is None


def _zero(q: Quantity) -> float | None:
    """Where nothing is different: 1 of ratios, 0 of what can be negative; none of a size."""
    if q.unit == "x":
        return 1.0
    return 0.0 if any(v is not None and v < 0 for v in q.values) else None


# --- courses ----------------------------------------------------------------------------------------------------------


def _courses(answer: Answer, quantities: Sequence[Quantity]) -> Iterator[Plane]:
    """A plane for each array with a second axis, and one for all others of the same range."""
    alike: dict[Range | str, list[Quantity]] = {}
    for q in quantities:
        own = q.name if len(q.axes) > 1 else (q.axes[0].name, q.unit, q.low, q.high) if q.axes else ""
        alike.setdefault(own, []).append(q)
    for found in alike.values():
        axis = found[0].axes[0] if found[0].axes else None
        curves = [curve for q in found if axis and q.axes[0] == axis for curve in _curves(q)]
        if axis and curves:
            yield _plane(answer, found, axis, curves)


def _plane(answer: Answer, found: Sequence[Quantity], along: Places, curves: Sequence[Curve]) -> Plane:
    named = ", ".join(q.label for q in found)
    label = found[0].label if len(found) == 1 else "share" if found[0].high == 1 and found[0].low == 0 else "value"
    ticks = () if _numbers(along) else along.ticks
    zero = next((z for q in found if (z := _zero(q)) is not None), None)
    reach = [x for curve in curves for x, _ in curve.points]
    even = [] if zero is None else [Curve(f"{zero:g}", ((min(reach), zero), (max(reach), zero)))]
    axes = (Axis(along.name, whole=all(map(float.is_integer, _numbers(along)))), Axis(label, found[0].unit))
    return Plane(
        f"{answer.title}: {named} by {along.name}", _caption(found), *axes, curves=(*curves, *even), ticks=ticks
    )


def _curves(q: Quantity) -> Iterator[Curve]:
    """A curve for each place beyond the first axis where two values or more are known."""
    several = list(product(*(axis.ticks for axis in q.axes[1:])))
    places = _numbers(q.axes[0]) or [float(i) for i in range(len(q.axes[0].ticks))]
    for number, at in enumerate(several):
        values = q.values[number :: len(several)]
        points = tuple((x, v) for x, v in zip(places, values, strict=True) if v is not None and math.isfinite(v))
        if len(points) > 1:
            name = " ".join(at) or q.label
            yield Curve(name, points, name)


def _numbers(axis: Places) -> list[float]:
    """The places of an axis whose ticks are numbers; none where they are names."""
    try:
        found = [float(tick) for tick in axis.ticks]
    except ValueError:
        return []
    return found if all(map(math.isfinite, found)) else []


def _caption(found: Sequence[Quantity]) -> str:
    return " ".join(f"{q.label}: {q.description}" for q in found if q.description)
