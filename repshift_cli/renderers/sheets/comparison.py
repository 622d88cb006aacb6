"""Findings as a sheet, the same that tables and Markdown are drawn from: a line per metric of a case."""

from __future__ import annotations

import math
from collections.abc import Sequence

from repshift_cli.analysis.comparison import BETTER, CHANGED, OPEN, SAME, WORSE, Finding, Lonely
from repshift_cli.analysis.stats import Estimate
from repshift_cli.records.labels import labels
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, Cell, Column, Sheet, scale
from repshift_cli.renderers.sheets.order import rank_of

TONES = {
    CHANGED: "",
    WORSE: "bad",
    BETTER: "good",
    SAME: "quiet",
    OPEN: "skipped",
    "fail": "bad",
    "inconclusive": "skipped",
}

SMALL = 0.01
"""A change below this is shown with two decimals of a percent."""


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


def by_size(findings: Sequence[Finding]) -> list[Finding]:
    """What changed before what is open before what is the same; in each the change that is the most of its own noise.

    Of equal ones the larger first, then the metric that a table shows first.
    """
    groups = {WORSE: 0, BETTER: 0, CHANGED: 0, OPEN: 1, SAME: 2}
    return sorted(findings, key=lambda f: (groups[f.word], -f.share_of_noise, -f.effect, rank_of(f.metric)))


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
    if finding.difference is not None:
        return _difference(finding, finding.difference)
    if finding.ratio is None:
        return Cell(MISSING)
    digits = 2 if abs(finding.ratio.value - 1) < SMALL else 1
    return Cell(percent(finding.ratio.value, digits), TONES.get(finding.word, ""), _interval(finding.ratio, digits))


def _difference(finding: Finding, change: Estimate) -> Cell:
    """`-1.2 points (-2.0 to -0.4)` of a figure of labelled samples, whose unit may be percent itself."""
    unit, decimals = (" points", 1) if finding.unit == "%" else (f" {finding.unit}".rstrip(), 3)
    value, *ends = (None if v is None else f"{v:+.{decimals}f}" for v in (change.value, change.low, change.high))
    interval = f"({ends[0]} to {ends[1]})" if all(ends) else ""
    return Cell(f"{value}{unit}", TONES.get(finding.word, ""), interval)


def percent(ratio: float, digits: int) -> str:
    """A ratio as a change: `+3.1%`; `0%` where nothing changed."""
    return "0%" if ratio == 1 else f"{ratio - 1:+.{digits}%}"


def _interval(ratio: Estimate, digits: int) -> str:
    if ratio.low is None or ratio.high is None:
        return ""
    return f"({percent(ratio.low, digits)} to {percent(ratio.high, digits)})"


def _word(finding: Finding) -> Cell:
    return Cell(finding.word, TONES.get(finding.word, ""))
