"""What an evaluation has to show: accuracy, what is lost against the unpruned model, by keep ratio and by speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice

from repshift_cli.records import METHODS_WITHOUT_PRUNING, Case, Measurement, Run
from repshift_cli.records.labels import labels
from repshift_cli.renderers.figures import of_run
from repshift_cli.renderers.figures.maps import keep_by_layer
from repshift_cli.renderers.figures.measured import Measured
from repshift_cli.renderers.figures.shapes import Axis, Bars, Curve, Figure, Plane
from repshift_cli.renderers.sheets.evaluation import against_unpruned, metric_names

MOST_SCHEDULES = 12
CUTS = tuple[int, ...]


def figures(run: Run) -> Iterator[Figure]:
    """Of each metric that was asked for its values, its losses and its course; then speed, maps, tokens, samples."""
    measured = Measured(run)
    wanted = asked(measured)
    for like in wanted:
        yield from bars(measured, like)
    yield from of_run.trade(measured, wanted)
    yield from of_run.speed(measured)
    for like in wanted:
        yield from by_keep(measured, like)
    yield from keep_by_layer(measured, wanted)
    yield from of_run.tokens(measured)
    yield from of_run.raw(measured)


def in_short(run: Run) -> Iterator[Figure]:
    """The first metric: its values, its losses, and what speed they buy."""
    measured = Measured(run)
    wanted = asked(measured)[:1]
    for like in wanted:
        yield from bars(measured, like)
    yield from islice(of_run.trade(measured, wanted), 1)


def asked(measured: Measured) -> list[Measurement]:
    """An example of each metric that the evaluation was about, in its order."""
    found = []
    for name in metric_names(measured.run):
        own = (m for record in measured.records if (m := record.measurement(name)) and m.samples)
        found += list(islice(own, 1))
    return found


def bars(measured: Measured, like: Measurement) -> Iterator[Bars]:
    """The metric of every case, and its difference to the unpruned model's."""
    known = _unpruned(measured, like)
    line = "; the line across all: the unpruned model" if known is not None else ""
    yield from _bars(measured, like.metric, "", line, () if known is None else (known,))
    yield from _bars(
        measured, against_unpruned(like.metric), "; paired on the same samples; at 0 nothing is lost", "", (0.0,)
    )


def _bars(measured: Measured, name: str, how: str, line: str, lines: tuple[float, ...]) -> Iterator[Bars]:
    found = [(row, m) for row, r in enumerate(measured.records) if (m := r.measurement(name)) and m.samples]
    marks = tuple(mark for row, m in found if (mark := measured.mark(row, m)))
    if marks:
        like = found[0][1]
        axis = Axis(like.label or like.metric, like.unit, better=like.better)
        caption = f"{axis.words}, {like.better} is better, with 95% intervals{how}{line}"
        yield of_run.cut_off(Bars(axis.label, caption, axis, marks, lines))


def _unpruned(measured: Measured, like: Measurement) -> float | None:
    """The metric's value where nothing is pruned."""
    for row, record in enumerate(measured.records):
        m = record.measurement(like.metric)
        if record.case.pruning == METHODS_WITHOUT_PRUNING and m and m.samples and (mark := measured.mark(row, m)):
            return mark.value
    return None


def by_keep(measured: Measured, like: Measurement) -> Iterator[Plane]:
    """For each schedule of cuts with several keep ratios, a curve for each variant."""
    schedules: dict[CUTS, dict[Case, list[tuple[float, float]]]] = {}
    for row, record in enumerate(measured.records):
        case, m = record.case, record.measurement(like.metric)
        mark = measured.mark(row, m) if m and m.samples else None
        keep = None if isinstance(case.keep, tuple) or case.remove is not None else case.keep
        if mark and case.pruning != METHODS_WITHOUT_PRUNING and keep is not None:
            alike = dataclasses.replace(case, keep=1.0, layers=())
            schedules.setdefault(case.layers, {}).setdefault(alike, []).append((keep, mark.value))
    known, axis = _unpruned(measured, like), Axis(like.label or like.metric, like.unit, better=like.better)
    for layers, variants in islice(schedules.items(), MOST_SCHEDULES):
        names = labels(variants)
        curves = [Curve(names[c], tuple(sorted(at)), names[c]) for c, at in variants.items() if len(set(at)) > 1]
        if curves:
            keeps = [x for curve in curves for x, _ in curve.points]
            even = [] if known is None else [Curve("unpruned", ((min(keeps), known), (max(keeps), known)))]
            where = f"cut after block {', '.join(map(str, layers))}"
            caption = f"{axis.words}, {like.better} is better, by the keep ratio; the quiet line is the unpruned model"
            yield Plane(f"{axis.label} by keep, {where}", caption, Axis("keep"), axis, curves=(*curves, *even))
