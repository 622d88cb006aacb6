"""Findings as a sheet, the same that tables and Markdown are drawn from: a line per metric of a case."""

from __future__ import annotations

import math
from collections.abc import Sequence

from repshift_cli.findings import BETTER, CHANGED, OPEN, SAME, WORSE, Finding, Lonely, labels
from repshift_cli.renderers._rows import ALWAYS, MISSING, Cell, Column, Sheet, scale
from repshift_cli.stats import Estimate

TONES = {
    CHANGED: "",
    WORSE: "bad",
    BETTER: "good",
    SAME: "quiet",
    OPEN: "skipped",
    "fail": "bad",
    "inconclusive": "skipped",
}


def sheet(
    findings: Sequence[Finding], lonely: Sequence[Lonely], header: Sequence[str], notes: Sequence[str] = ()
) -> Sheet:
    """Case, metric, both sides, the change with its interval, what to call it; the verdict where one was given."""
    names = labels([f.case for f in findings] + [one.case for one in lonely])
    metrics = dict.fromkeys(f.label or f.metric for f in findings)
    if len(metrics) == 1:
        header = (*metrics, *header)
    columns = [
        Column("case", ALWAYS, tuple(Cell(names[f.case]) for f in findings)),
        *[Column("metric", ALWAYS, tuple(Cell(f.label or f.metric) for f in findings))] * (len(metrics) > 1),
        Column("base", 30, tuple(Cell(figure(f, f.base)) for f in findings), numeric=True, metric=True),
        Column("head", 20, tuple(Cell(figure(f, f.head)) for f in findings), numeric=True, metric=True),
        Column("change", 10, tuple(_change(f) for f in findings), numeric=True, metric=True),
        Column("head is", ALWAYS, tuple(_word(f) for f in findings)),
    ]
    if any(f.verdict for f in findings):
        columns.append(Column("verdict", ALWAYS, tuple(Cell(f.verdict, TONES.get(f.verdict, "")) for f in findings)))
    said = [f"{names[f.case]}, {f.label}: {f.reason}" for f in findings if f.reason]
    said += [f"only on {one.side}: {names[one.case]} ({one.reason})" for one in lonely]
    return Sheet(tuple(header), tuple(columns), "", (*said, *notes))


def figure(finding: Finding, value: float | None) -> str:
    """A number of four digits with its unit, both sides of a finding on one scale."""
    if value is None:
        return MISSING
    known = [v for v in (finding.base, finding.head) if v is not None]
    unit, factor = scale(finding.unit, known)
    digits = max(0, 3 - math.floor(math.log10(abs(value / factor)))) if value else 0
    text = f"{value / factor:.{digits}f}" if digits < 8 else f"{value / factor:.3e}"
    return f"{text}x" if unit == "x" else f"{text} {unit}".strip()


def _change(finding: Finding) -> Cell:
    if finding.ratio is None:
        return Cell(MISSING)
    return Cell(percent(finding.ratio.value, finding.ratio), TONES[finding.word], _interval(finding.ratio))


def percent(ratio: float, like: Estimate) -> str:
    """A ratio as a change: `+3.1%`, with more digits where the interval is narrow; `0%` where nothing changed."""
    if ratio == 1:
        return "0%"
    narrow = like.low is not None and like.high is not None and like.high - like.low < 0.002
    return f"{ratio - 1:+.{2 if narrow or abs(ratio - 1) < 0.001 else 1}%}"


def _interval(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    return f"({percent(ratio.low, ratio)} to {percent(ratio.high, ratio)})"


def _word(finding: Finding) -> Cell:
    return Cell(finding.word, TONES[finding.word])
