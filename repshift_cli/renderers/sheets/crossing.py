"""From which length each attention operator beats the reference: the ratios of a sweep over tokens, and a chart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from repshift_cli.analysis.crossing import Crossing, crossing
from repshift_cli.analysis.stats import estimate
from repshift_cli.records import OPERATORS, Case, Measurement, Record, Run
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, Cell, Column, Sheet, metric_cell
from repshift_cli.renderers.sheets.metric_columns import ordered_records
from repshift_cli.renderers.sheets.run import header_of

STEPS = "▁▂▃▄▅▆▇█"
"""One step is a factor of 2; what lies in the upper half is faster than the reference."""

Curve = dict[int, Measurement]
"""The paired ratio by tokens."""


def crossings(run: Run) -> list[Sheet]:
    """One sheet for each group of cells that differ in their tokens only, where two lengths or more were measured."""
    groups: dict[Case, dict[Case, Curve]] = {}
    for record in ordered_records(run):
        ratio = _ratio(record)
        if ratio is not None and record.case.length is not None:
            alike = dataclasses.replace(record.case, length=None)
            group = dataclasses.replace(alike, attention="", pruning="none", keep=1.0, layers=())
            groups.setdefault(group, {}).setdefault(alike, {})[record.case.length] = ratio
    return [_sheet(run, g, curves) for g, curves in groups.items() if len({n for c in curves.values() for n in c}) > 1]


def _ratio(record: Record) -> Measurement | None:
    """The record's paired ratio to the reference."""
    if record.case.model != OPERATORS or record.status != "ok":
        return None
    return next((m for m in record.measurements if m.statistic == "hodges-lehmann" and m.samples), None)


def _sheet(run: Run, group: Case, curves: dict[Case, Curve]) -> Sheet:
    lengths = sorted({n for curve in curves.values() for n in curve})
    label = next(m.label for curve in curves.values() for m in curve.values())
    found = {case: crossing(_shown(curve)) for case, curve in curves.items()}
    order = sorted(curves, key=lambda case: _rank(found[case]))
    columns = (
        Column("operator", ALWAYS, tuple(Cell(case.variant) for case in order)),
        Column("faster from", ALWAYS, tuple(_from(found[case], curves[case]) for case in order), metric=True),
        Column("chart", 1, tuple(Cell(_chart(curves[case], lengths)) for case in order)),
        *(_column(n, [curves[case].get(n) for case in order], 2 + i) for i, n in enumerate(reversed(lengths))),
    )
    header = (f"break-even {label}, by tokens", *header_of(run.machine, [group])[1:])
    header = tuple(word for word in header if word != "None tokens")
    note = (
        f"chart: {lengths[0]} to {lengths[-1]} tokens from left to right, a step is a factor of 2, the upper half "
        f"({STEPS[4:]}) is faster; where an interval holds 1 nothing "
        "is faster; a length between two measured ones is interpolated on logarithmic scales"
    )
    return Sheet(header, _in_reading_order(columns), "", (note,))


def _in_reading_order(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Lengths from short to long, though the longest is the last to be left out."""
    return (*columns[:3], *reversed(columns[3:]))


def _points(curve: Curve) -> list[tuple[int, float]]:
    figures = [(n, estimate(m)) for n, m in sorted(curve.items())]
    return [(n, figure.value) for n, figure in figures if figure is not None]


def _shown(curve: Curve) -> list[tuple[int, float]]:
    """The ratios as far as they are known to lie above 1: one whose interval holds 1 counts as 1."""
    figures = [(n, estimate(m)) for n, m in sorted(curve.items())]
    return [(n, min(f.value, 1.0) if f.spans(1) else f.value) for n, f in figures if f is not None]


def _rank(found: Crossing) -> tuple[int, float]:
    return ("always", "from", "never").index(found.word), found.at or 0.0


def _from(found: Crossing, curve: Curve) -> Cell:
    if found.word == "always":
        return Cell(f"{min(curve)} or fewer", "good")
    if found.at is None or found.between is None:
        return Cell(MISSING, "quiet")
    low, high = found.between
    return Cell(f"~{found.at:.0f}", "good", f"({low}–{high})")


def _chart(curve: Curve, lengths: Sequence[int]) -> str:
    steps = {n: 4 + math.floor(math.log2(ratio)) for n, ratio in _points(curve)}
    return "".join(STEPS[min(7, max(0, steps[n]))] if n in steps else " " for n in lengths)


def _column(length: int, row: Sequence[Measurement | None], rank: int) -> Column:
    cells = tuple(metric_cell(m, estimate(m) if m else None, 1.0) for m in row)
    plain = tuple(
        dataclasses.replace(c, text=_value(m) if m else c.text, detail="") for c, m in zip(cells, row, strict=True)
    )
    return Column(str(length), rank, plain, numeric=True, metric=True)


def _value(ratio: Measurement) -> str:
    figure = estimate(ratio)
    return f"{figure.value:.2f}x" if figure else MISSING
