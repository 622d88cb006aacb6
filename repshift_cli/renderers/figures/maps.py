"""Heat maps of a run: keep ratios by layers, and where pruning pays by size and batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from repshift_cli.records import METHODS_WITHOUT_PRUNING, OPERATORS, Case, Measurement
from repshift_cli.records.labels import labels
from repshift_cli.renderers.figures.measured import Measured
from repshift_cli.renderers.figures.shapes import Axis, Heat, Mark
from repshift_cli.renderers.sheets.break_even import input_words, speedups
from repshift_cli.renderers.sheets.metric_columns import metrics_of
from repshift_cli.renderers.sheets.order import is_headline

MOST_MAPS = 24
Cells = dict[tuple[float, tuple[int, ...]], int]
"""The row of each keep ratio and schedule."""
QUALITY_AND_SPEED = ("timed", "compared", "labelled")


def keep_by_layer(measured: Measured, wanted: Sequence[Measurement] = ()) -> Iterator[Heat]:
    """For each pruned variant of a group, every figure that a table is read for, or is `wanted`, by keep and layers."""
    tables: dict[Case, Cells] = {}
    for row, record in enumerate(measured.records):
        case = record.case
        if isinstance(case.keep, tuple):
            continue
        if record.status == "ok" and case.pruning != METHODS_WITHOUT_PRUNING and case.model != OPERATORS:
            alike = dataclasses.replace(case, keep=1.0, layers=())
            tables.setdefault(alike, {})[case.keep, case.layers] = row
    wide = {alike: cells for alike, cells in tables.items() if _varies_both_ways(cells)}
    names = labels(wide)
    made = 0
    for alike, cells in wide.items():
        for like in wanted or _shown(measured, cells.values()):
            made += 1
            if made <= MOST_MAPS:
                yield _keep_map(measured, names[alike], cells, like)


def _varies_both_ways(cells: Cells) -> bool:
    return len({keep for keep, _ in cells}) > 1 and len({layers for _, layers in cells}) > 1


def _shown(measured: Measured, rows: Iterable[int]) -> list[Measurement]:
    records = [measured.records[row] for row in rows]
    likes = [m for m in metrics_of(records) if not m.detail and m.source in QUALITY_AND_SPEED and is_headline(m.metric)]
    ratios = [m for m in likes if m.unit == "x" and m.better == "higher"][:1]
    return [*ratios, *(m for m in likes if m.source != "timed")]


def _keep_map(measured: Measured, name: str, cells: Cells, like: Measurement) -> Heat:
    keeps = sorted({keep for keep, _ in cells}, reverse=True)
    schedules = sorted({layers for _, layers in cells})

    def mark(keep: float, layers: tuple[int, ...]) -> Mark | None:
        row = cells.get((keep, layers))
        m = None if row is None else measured.records[row].measurement(like.metric)
        return measured.mark(row, m) if row is not None and m and m.samples else None

    dashed = "; a dashed cell shows no gain, for its interval holds 1" if like.unit == "x" else ""
    return Heat(
        f"{name}: {like.label} by keep and layers",
        f"{like.label or like.metric}, {like.better} is better, by keep ratio and by the blocks cut{dashed}",
        Axis(like.label or like.metric, like.unit, better=like.better),
        "keep",
        "layers",
        tuple(f"{keep:g}" for keep in keeps),
        tuple(",".join(map(str, layers)) for layers in schedules),
        tuple(tuple(mark(keep, layers) for layers in schedules) for keep in keeps),
        1.0 if like.unit == "x" else None,
    )


def break_even(measured: Measured) -> Iterator[Heat]:
    """Where pruning pays: the speed-up by workload and keep ratio."""
    rows = {id(record): row for row, record in enumerate(measured.records)}
    for case, cells in list(speedups(measured.run).items())[:MOST_MAPS]:
        workloads = sorted({workload for workload, _ in cells}, key=lambda w: (w[3], w[0]))
        keeps = sorted({keep for _, keep in cells})
        if len(workloads) < 2:
            continue
        like = next(iter(cells.values()))[1]
        found = {place: measured.mark(rows[id(record)], m) for place, (record, m) in cells.items()}
        yield Heat(
            f"Where pruning pays: {case.variant}, {like.label}, {case.model}, {case.execution}",
            f"{like.label} by workload and keep ratio; a cell whose interval holds 1 shows no gain",
            Axis(like.label, like.unit, better=like.better),
            "input",
            "keep",
            tuple(f"{w[0]} tokens, {input_words(w)}, batch {w[3]}" for w in workloads),
            tuple(f"{keep:g}" for keep in keeps),
            tuple(tuple(found.get((w, keep)) for keep in keeps) for w in workloads),
            1.0,
        )
