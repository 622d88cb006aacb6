"""CSV: one line per case with every metric, units in the columns' names, intervals beside them.

What is missing is empty.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from typing import Any, TextIO

from repshift_cli.analysis.stats import estimate
from repshift_cli.records import Measurement, Record, Run, names_of, printable_line
from repshift_cli.records.case import option_order
from repshift_cli.records.inspection import Inspection
from repshift_cli.records.profile import KernelTime, OpTime, PartTime, ProfileRun
from repshift_cli.records.tuning import Tuning
from repshift_cli.renderers import Document
from repshift_cli.renderers.sheets.metric_columns import find, metrics_of, ordered_records

TAKES = ("run", "profile", "inspection", "tuning")
SUFFIX = ".csv"

SUFFIXES = {"": "", "x": "", "MAC": "", "B": "bytes", "1/s": "per_s", "%": "percent"}
FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet runs where a cell begins with it."""
WITH_INTERVAL = ("median", "inverse-median", "hodges-lehmann", "wilson", "tango", "mean", "bootstrap")
HELD_OUT = ("loss_held_out", "found_less_it", "speedup", "latency_ms")
"""What is measured of a schedule that a search recommends, and of what it is held against."""
RECORD_FIELDS = ("status", "reason", "tokens", "kernel", "rounds", "warmup", "stopped_by", "unfit")


def render(document: Document, out: TextIO) -> None:
    """Write one line per record, the skipped and the failed among them; of a profile one per line of its view.

    Of an inspection one line per value, with its place along every axis; of a search one per cut or schedule.
    """
    if document.kind == "profile":
        _render_profile(document.content, out)
    elif document.kind == "inspection":
        _render_inspection(document.content, out)
    elif document.kind == "tuning":
        _render_search(document.content, out)
    else:
        _render_run(document.content, out)


def _render_run(run: Run, out: TextIO) -> None:
    metrics = metrics_of(run.records)
    names = [_name(like, metrics) for like in metrics]
    rows = [_row(record, metrics, names) for record in ordered_records(run)]
    fields = ["variant", *names_of(record.case for record in run.records), *RECORD_FIELDS]
    for like, name in zip(metrics, names, strict=True):
        fields += [name, f"{name}_low", f"{name}_high"] if like.statistic in WITH_INTERVAL else [name]
    writer = csv.DictWriter(out, fields, restval="", lineterminator="\n")
    writer.writerow({name: _text(name) for name in fields})
    writer.writerows(rows)


def _render_profile(run: ProfileRun, out: TextIO) -> None:
    """The parts of every block, the kernels or the operators, all of them, unrounded."""
    held, kind = {"kernel": ("kernels", KernelTime), "op": ("ops", OpTime)}.get(
        str(run.options.get("by")), ("parts", PartTime)
    )
    names = [f.name for f in dataclasses.fields(kind)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["variant", *names])
    for b in run.breakdowns:
        writer.writerows([_text(b.name), *(_text(getattr(line, n)) for n in names)] for line in getattr(b, held))


def _render_inspection(run: Inspection, out: TextIO) -> None:
    """Every value of every array, unrounded; an axis that an array has not is empty."""
    axes = list(dict.fromkeys(axis.name for a in run.answers for q in a.quantities for axis in q.axes))
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "question", "quantity", "unit", *map(_text, axes), "value"])
    for answer in run.answers:
        for q in answer.quantities:
            names = [axis.name for axis in q.axes]
            for place, value in q.items():
                at = dict(zip(names, place, strict=True))
                told = (run.case.model, answer.question, q.name, q.unit, *(at.get(name) for name in axes), value)
                writer.writerow([_text(cell) for cell in told])


def _render_search(tuning: Tuning, out: TextIO) -> None:
    """Single cuts with their mean loss on the calibration samples, schedules with theirs on the held-out ones."""
    rows: list[dict[str, Any]] = []
    for single in tuning.singles:
        own = {"what": "one cut", "method": single.method, "keep": single.keep, "layers": single.layer}
        rows.append(own | dict(single.options) | {"loss_calibration": single.loss})
    for one in tuning.confirmed:
        case = one.case
        own = {"what": one.role, "number": one.number, "method": case.pruning, "keep": case.keep, "layers": case.layers}
        row = own | dict(case.options) | {"protect": case.protect, "loss_calibration": one.calibration}
        for name, measurement in zip(HELD_OUT, (one.loss, one.versus, one.speedup, one.latency), strict=True):
            figure = estimate(measurement) if measurement is not None else None
            if figure is not None:
                row |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
        rows.append(row | {"predicted_ms": one.predicted})
    figures = [name for own in HELD_OUT for name in (own, f"{own}_low", f"{own}_high")]
    first, last = (
        ["what", "number", "method", "keep", "layers"],
        ["protect", "loss_calibration", *figures, "predicted_ms"],
    )
    known = [*first, *option_order({name for row in rows for name in row} - {*first, *last}), *last]
    writer = csv.DictWriter(out, ["model", "loss", "unit", *known], restval="", lineterminator="\n")
    writer.writeheader()
    told = {"model": tuning.model, "loss": tuning.loss, "unit": tuning.unit}
    writer.writerows({name: _text(value) for name, value in (told | row).items()} for row in rows)


def _name(like: Measurement, metrics: list[Measurement]) -> str:
    """`latency_ms`, `memory_peak_allocated_bytes`, `speedup_vs_flash`; the source too where a metric has several."""
    suffix = SUFFIXES.get(like.unit, re.sub(r"\W+", "_", like.unit).strip("_").lower())
    several = len({other.source for other in metrics if other.metric == like.metric}) > 1
    parts = [like.metric, like.source if several else "", suffix]
    return "_".join(filter(None, parts))


def _row(record: Record, metrics: list[Measurement], names: list[str]) -> dict[str, Any]:
    told = {"variant": record.case.variant, **record.case.values, **{n: getattr(record, n) for n in RECORD_FIELDS}}
    row = {name: _text(value) for name, value in told.items()}
    for like, name in zip(metrics, names, strict=True):
        measurement = find(record, like)
        figure = estimate(measurement) if measurement else None
        if figure is None or (record.unfit and like.unit == "x"):
            continue
        row[name] = _text(figure.value)
        if like.statistic in WITH_INTERVAL:
            row |= {f"{name}_low": _text(figure.low), f"{name}_high": _text(figure.high)}
    return row


def _text(value: Any) -> str:
    """One cell: nothing for None, lists with spaces, whole numbers without a decimal point, no line breaks.

    Text that a spreadsheet would take for a formula has an apostrophe in front, which says there that it is text.
    """
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    text = printable_line(" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return f"'{text}" if text.startswith(FORMULA) else text
