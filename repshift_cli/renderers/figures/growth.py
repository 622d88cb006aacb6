"""How attention operators grow: the ratio to the reference over the number of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from repshift_cli.records import OPERATORS, Case
from repshift_cli.renderers.figures.measured import Measured, is_speedup
from repshift_cli.renderers.figures.shapes import Axis, Curve, Plane


def growth(measured: Measured) -> Iterator[Plane]:
    """For each comparison of operators at two lengths or more, a curve for each operator."""
    groups: dict[Case, dict[str, list[tuple[float, float]]]] = {}
    label = "speed-up"
    for row, m in measured.rows(is_speedup):
        case, mark = measured.records[row].case, measured.mark(row, m)
        if mark is None or case.model != OPERATORS or case.length is None:
            continue
        label = m.label
        alike = dataclasses.replace(case, length=None, attention="", pruning="none", keep=1.0, layers=())
        groups.setdefault(alike, {}).setdefault(case.variant, []).append((float(case.length), mark.value))
    for curves in groups.values():
        drawn = tuple(Curve(name, tuple(sorted(points)), name) for name, points in curves.items() if len(points) > 1)
        if drawn:
            reach = [x for curve in drawn for x, _ in curve.points]
            even = Curve("1x", ((min(reach), 1.0), (max(reach), 1.0)))
            caption = f"{label}, higher is better, by tokens; the quiet line is the reference itself"
            axes = (Axis("tokens", log=True), Axis(label, "x", log=True, better="higher"))
            yield Plane(f"{label} by tokens", caption, *axes, curves=(*drawn, even))
