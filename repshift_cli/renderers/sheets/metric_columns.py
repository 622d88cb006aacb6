"""The columns of metrics: which a run has, in which order, and which records have a figure there.

No metric is known by name here: a measurement says itself how it wants to be shown, `order` where.
"""

from __future__ import annotations

from collections.abc import Sequence

from repshift_cli.analysis.stats import Estimate, estimate
from repshift_cli.records import Case, Measurement, Record, Run
from repshift_cli.renderers.sheets.cells import BUSY, Cell, Column, metric_cell, scale
from repshift_cli.renderers.sheets.order import rank_of

SILENT_UNITS = ("", "x", "1/s")
"""Units that the heading leaves out: the cell (1.32x) or the label (img/s) says them."""


def ordered_records(run: Run) -> list[Record]:
    """The records in the order in which their cases were planned."""
    places = {case: i for i, case in enumerate(run.planned)}
    return sorted(run.records, key=lambda record: places.get(record.case, len(places)))


def metrics_of(records: Sequence[Record]) -> list[Measurement]:
    """One example of each metric, source and unit in the records, most wanted first; a source has its own column."""
    found: dict[tuple[str, str, str], Measurement] = {}
    for record in records:
        for measurement in record.measurements:
            found.setdefault(_identity(measurement), measurement)
    return sorted(found.values(), key=lambda m: rank_of(m.metric))


def find(record: Record, like: Measurement) -> Measurement | None:
    """The record's measurement of the same metric, source and unit, or None."""
    return next((m for m in record.measurements if _identity(m) == _identity(like)), None)


def _identity(m: Measurement) -> tuple[str, str, str]:
    return (m.metric, m.source, m.unit)


def metric_columns(records: Sequence[Record]) -> list[Column]:
    """A column for each of `shown_metrics`."""
    shown = shown_metrics(records)
    labels = [like.label for like, _ in shown]
    unfit = [record.unfit is not None for record in records]
    return [_metric_column(like, row, labels.count(like.label) > 1, unfit) for like, row in shown]


def shown_metrics(records: Sequence[Record]) -> list[tuple[Measurement, list[Measurement | None]]]:
    """What a table shows, an example and each record's own: metrics that some record has a figure of."""
    shown = []
    for like in metrics_of(records):
        row = [find(record, like) for record in records]
        if not like.detail and any(m and m.samples for m in row):
            shown.append((like, row))
    return shown


def _metric_column(
    like: Measurement, row: Sequence[Measurement | None], name_source: bool, unfit: Sequence[bool]
) -> Column:
    estimates = [estimate(m) if m else None for m in row]
    unit, factor = scale(like.unit, [e.value for e in estimates if e])
    cells = tuple(
        Cell(BUSY, "skipped") if e and busy and like.unit == "x" else metric_cell(m, e, factor)
        for m, e, busy in zip(row, estimates, unfit, strict=True)
    )
    words = [like.label, f"({like.source})" if name_source else "", "" if unit in SILENT_UNITS else unit]
    return Column(" ".join(filter(None, words)), rank_of(like.metric), cells, True, True, like.metric)


def exported(run: Run) -> list[tuple[Case, Measurement, Estimate]]:
    """Every figure that a table may show, case by case in the order planned: what dashboards get."""
    found = []
    for record in ordered_records(run):
        for m in record.measurements:
            figure = None if m.detail or (record.unfit and m.unit == "x") else estimate(m)
            if figure is not None:
                found.append((record.case, m, figure))
    return found
