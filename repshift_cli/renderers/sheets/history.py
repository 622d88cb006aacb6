"""Series as sheets: a sparkline per case, its first and last figure, and where it steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from repshift_cli.analysis.history import Series, Step
from repshift_cli.records import Case
from repshift_cli.records.labels import labels
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, Cell, Column, Sheet, scale
from repshift_cli.renderers.sheets.notes import NAMES_IN_A_NOTE
from repshift_cli.renderers.sheets.order import rank_of

BARS = "▁▂▃▄▅▆▇█"
MARK = "|"
WIDEST = 48


def sheets(found: Sequence[Series], notes: Sequence[str]) -> list[Sheet]:
    """One sheet per machine and metric; the general notes under the last."""
    ordered = sorted(found, key=lambda s: (s.machine, rank_of(s.like.metric), s.like.metric))
    groups = [list(own) for _, own in groupby(ordered, key=lambda s: (s.machine, s.like.metric))]
    return [_sheet(group, notes if group is groups[-1] else ()) for group in groups]


def sentence(found: Sequence[Series]) -> str:
    """How many series step, and where the last step is; nothing where steps were not looked for."""
    known = [s for s in found if s.steps is not None]
    notes = _step_notes(known, labels(s.case for s in known))
    if not notes:
        return f"No step in {len(known)} series." if known else ""
    return f"{sum(bool(s.steps) for s in known)} of {len(known)} series step; the last: {notes[-1]}."


def _sheet(found: Sequence[Series], notes: Sequence[str]) -> Sheet:
    names = labels(s.case for s in found)
    like = found[0].like
    unit, factor = scale(like.unit, [p.value for s in found for p in s.points])
    columns = (
        Column("case", ALWAYS, tuple(Cell(names[s.case]) for s in found)),
        Column("runs", 30, tuple(Cell(str(len(s.points))) for s in found), numeric=True),
        Column("over time", ALWAYS, tuple(Cell(sparkline(s)) for s in found)),
        Column("first", 20, tuple(Cell(_number(s.points[0].value / factor)) for s in found), numeric=True, metric=True),
        Column("last", 10, tuple(Cell(_number(s.points[-1].value / factor)) for s in found), numeric=True, metric=True),
        Column("steps", 12, tuple(_steps(s) for s in found), numeric=True),
    )
    said = _step_notes(found, names)
    dates = sorted(p.created[:10] for s in found for p in s.points)
    header = (f"{like.label or like.metric} {unit}".strip(), f"{dates[0]} to {dates[-1]}", found[0].machine)
    return Sheet(header, columns, "", (*said, *notes))


def sparkline(series: Series) -> str:
    """The last figures as bars on a logarithmic scale from their lowest to their highest, a mark before each step."""
    points = series.points[-WIDEST:]
    offset = len(series.points) - len(points)
    marked = {step.index - offset for step in series.steps or ()}
    logs = [math.log(max(p.value, 1e-300)) for p in points]
    low, span = min(logs), max(max(logs) - min(logs), 0.02)
    text = ""
    for i, value in enumerate(logs):
        text += MARK if i in marked else ""
        text += BARS[min(len(BARS) - 1, int((value - low) / span * len(BARS)))]
    return text


def _step_notes(found: Sequence[Series], names: Mapping[Case, str]) -> list[str]:
    """One note per run at which cases step: `step at 2026-11-20 (3f2c1ab): flash +5.2%, vanilla +5.0%`."""
    at: dict[tuple[str, str], list[tuple[str, Step]]] = {}
    for own in found:
        for step in own.steps or ():
            at.setdefault((step.point.created, step.point.commit or ""), []).append((names[own.case], step))
    notes = []
    for (created, commit), cases in sorted(at.items()):
        place = f"{created[:10]} ({commit[:10]})" if commit else created[:10]
        changes = [step.ratio - 1 for _, step in cases]
        if len(cases) > NAMES_IN_A_NOTE:
            said = f"{len(cases)} of {len(found)} cases, by {min(changes):+.1%} to {max(changes):+.1%}"
        else:
            said = ", ".join(f"{name} {step.ratio - 1:+.1%}" for name, step in cases)
        notes.append(f"step at {place}: {said}")
    return notes


def _steps(series: Series) -> Cell:
    if series.steps is None:
        return Cell(MISSING)
    text = ", ".join(f"{step.ratio - 1:+.1%}" for step in series.steps)
    return Cell(text or "none", "" if text else "quiet")


def _number(value: float) -> str:
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{digits}f}" if digits < 8 else f"{value:.3e}"
