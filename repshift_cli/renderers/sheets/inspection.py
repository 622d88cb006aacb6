"""An inspection as sheets: one per question, by what its arrays say of themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from repshift_cli.records.inspection import Answer, Axis, Inspection, Quantity
from repshift_cli.renderers.sheets.cells import ALWAYS, Cell, Column, Sheet
from repshift_cli.renderers.sheets.run import header_of

NOTHING = Column("block", ALWAYS, ())
"""What a sheet without any figures has."""


def sheets_of(run: Inspection) -> list[Sheet]:
    """A sheet for each first axis of each answer's tables; what was read and why something is missing stand below."""
    ready = [sheet for answer in run.answers for sheet in _sheets(answer)]
    if ready:
        told = header_of(run.machine, [run.case]) if run.machine else (run.case.model,)
        seen = (run.case.attention, f"{run.tokens} tokens", f"{run.inputs} input{'s' if run.inputs != 1 else ''}")
        ready[0] = replace(ready[0], header=(*ready[0].header, *told, *seen))
        notes = (*ready[-1].notes, *(f"warning: {text}" for text in run.warnings))
        ready[-1] = replace(ready[-1], notes=notes)
    return ready


def sentence(run: Inspection) -> str:
    """What the first answer amounts to."""
    read = next((answer.reading for answer in run.answers if answer.reading), ())
    return f"{'; '.join(read)}." if read else ""


def _sheets(answer: Answer) -> list[Sheet]:
    if answer.status != "ok":
        return [Sheet((answer.title,), (NOTHING,), "", (f"{answer.status}: {answer.reason}",))]
    shown = [q for q in answer.quantities if q.view == "table" and any(v is not None for v in q.values)]
    first_axes = dict.fromkeys(q.axes[0] for q in shown)
    ready = [_sheet(answer, axis, [q for q in shown if q.axes[0] == axis]) for axis in first_axes]
    ready = ready or [Sheet((answer.title,), (NOTHING,), "", ())]
    ready[-1] = replace(ready[-1], notes=tuple(_notes(answer)))
    return ready


def _sheet(answer: Answer, rows: Axis, quantities: Sequence[Quantity]) -> Sheet:
    columns = [_rows(rows.name, rows.ticks)]
    several = sum(len(q.axes) > 1 for q in quantities) > 1
    for q in quantities:
        columns += _columns(q, len(columns) + 9, f"{q.label} " if several else "")
    return Sheet((answer.title,), tuple(columns), "", ())


def _rows(title: str, ticks: Iterable[str]) -> Column:
    return Column(title, ALWAYS, tuple(map(Cell, ticks)))


def _columns(q: Quantity, rank: int, above: str) -> Iterable[Column]:
    """One column, or one for each place of the second axis that holds anything, `above` in front of its name."""
    count = len(q.axes[0].ticks)
    several = q.axes[1].ticks if len(q.axes) > 1 else ("",)
    rows = [q.values[n * len(several) : (n + 1) * len(several)] for n in range(count)]
    for number, tick in enumerate(several):
        values = [row[number] for row in rows]
        if any(v is not None for v in values):
            title = f"{above + tick if tick else q.label} {q.unit if q.unit != 'x' else ''}".strip()
            yield Column(
                title, rank + number, tuple(Cell() if v is None else Cell(_figure(v, q)) for v in values), not q.words
            )


def _figure(value: float, q: Quantity) -> str:
    if f"{value:g}" in q.words:
        return q.words[f"{value:g}"]
    if q.low == -1:
        return f"{value:+.2f}"
    if q.unit == "x":
        return f"{value:.2f}x"
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1e4 else f"{value:.3g}"


def _notes(answer: Answer) -> Iterable[str]:
    """What the columns are, what was read, and what is missing."""
    for q in answer.quantities:
        if q.view == "table":
            lacking = f" (–: {q.missing})" if q.missing and None in q.values else ""
            yield f"{q.label}: {q.description}{lacking}"
    yield from answer.reading
