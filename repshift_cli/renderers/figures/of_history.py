"""What a history has to show: each case's figure run by run, and where it steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from repshift_cli.analysis.history import Series
from repshift_cli.records.labels import labels
from repshift_cli.renderers.figures.shapes import Axis, Curve, Plane

MOST_CURVES = 24


def figures(found: Sequence[Series]) -> Iterator[Plane]:
    """One plane for each machine and metric, a curve for each case."""
    ordered = sorted(found, key=lambda s: (s.machine, s.like.metric))
    for (machine, _), own in groupby(ordered, key=lambda s: (s.machine, s.like.metric)):
        yield _plane(machine, list(own))


def _plane(machine: str, found: Sequence[Series]) -> Plane:
    like, names = found[0].like, labels(s.case for s in found)
    runs = sorted({(p.created, p.commit or "") for s in found for p in s.points})
    place = {run: float(i) for i, run in enumerate(runs)}
    curves = []
    for s in found[:MOST_CURVES]:
        points = tuple((place[p.created, p.commit or ""], p.value) for p in s.points)
        steps = tuple(place[step.point.created, step.point.commit or ""] for step in s.steps or ())
        curves.append(Curve(names[s.case], points, names[s.case], marks=steps))
    more = f"; {MOST_CURVES} of {len(found)} cases" if len(found) > MOST_CURVES else ""
    caption = f"run by run on {machine}; a dashed line: from here on the level is another one{more}"
    label = like.label or like.metric
    axis = Axis(label, like.unit, better=like.better)
    ticks = tuple(" ".join(filter(None, (created[:10], commit[:7]))) for created, commit in runs)
    return Plane(f"{label} over time", caption, Axis("run"), axis, curves=tuple(curves), ticks=ticks)
