"""What a gate or a comparison has to show: how far each metric changed, with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repshift_cli.analysis.comparison import Finding, worse
from repshift_cli.records.labels import labels
from repshift_cli.renderers.figures.shapes import Axis, Bars, Mark

MOST_CHANGES = 40


def figures(findings: Sequence[Finding]) -> Iterator[Bars]:
    """The change of every metric, above 0 being worse; what is exact and did not change is left out."""
    names = labels(f.case for f in findings)
    shown = [f for f in findings if f.ratio and f.ratio.value > 0 and not (f.exact and f.ratio.value == 1)]
    largest = sorted(shown, key=lambda f: -f.effect)[:MOST_CHANGES]
    marks = []
    for f in largest:
        assert f.ratio is not None
        turned = worse(f.ratio, f.better)
        low, high = (None if end is None else 100 * (end - 1) for end in (turned.low, turned.high))
        name = f"{names[f.case]}, {f.label or f.metric}"
        marks.append(Mark(name, 100 * (turned.value - 1), low, high, group=f.case.variant))
    if marks:
        deltas = sorted({100 * f.delta for f in largest if f.verdict and f.delta})
        more = f"; the largest {MOST_CHANGES} of {len(shown)}" if len(shown) > MOST_CHANGES else ""
        limits = "; lines stand where a gate's limits are" if deltas else ""
        caption = f"head against base, turned so that to the right is worse, with intervals{limits}{more}"
        yield Bars("Changes", caption, Axis("worse by", "%", better="lower"), tuple(marks), tuple(deltas))
