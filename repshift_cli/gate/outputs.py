"""What the two sides compute, before how fast: their outputs side by side, as `bench` noted them."""

from __future__ import annotations

import math

from repshift_cli.analysis.comparison import CHANGED, SAME, Finding
from repshift_cli.gate.thresholds import OUTPUT
from repshift_cli.gate.verdict import FAIL, INFORM, PASS
from repshift_cli.records import Case, Output

MEANT = f'where that is meant, set {OUTPUT} = "inform" in [thresholds]'


def distance(base: Output, head: Output) -> float | None:
    """How far head's numbers are from base's, as a share of base's length; None where they cannot be compared.

    Of sketches, so give or take a fifth of itself; 0 where nothing changed.
    """
    if base.words != head.words or len(base.sketch) != len(head.sketch):
        return None
    length, apart = math.hypot(*base.sketch), math.dist(base.sketch, head.sketch)
    return apart / length if length else math.inf if apart else 0.0


def differ(base: Output, head: Output, tolerance: float) -> bool:
    """Whether head computes something else than base."""
    far = distance(base, head)
    return far is None or far > tolerance or head.finite < base.finite


def compared(case: Case, base: Output, head: Output, tolerance: float | None, wanders: bool) -> Finding:
    """The outputs of one case as a finding; they only inform without a tolerance, or where base's own one `wanders`."""
    far, off = distance(base, head), differ(base, head, tolerance or 0.0)
    percent = None if far is None else 100 * far
    verdict = INFORM if tolerance is None or wanders else FAIL if off else PASS
    reason = None
    if off and wanders:
        reason = "base's own output differs from process to process, so head's was not judged (a seed would mend it)"
    elif verdict == FAIL:
        reason = f"{_how(base, head, far, tolerance or 0.0)}; {MEANT}"
    named = (OUTPUT, OUTPUT, "%", "lower")
    word = CHANGED if off else SAME
    return Finding(case, *named, True, 0.0, percent, None, word, tolerance or 0.0, verdict, reason=reason)


def _how(base: Output, head: Output, far: float | None, tolerance: float) -> str:
    if base.words != head.words:
        return f"head puts out {head.words}, base {base.words}"
    if head.finite < base.finite:
        return f"{head.finite:.3%} of head's numbers are finite, of base's {base.finite:.3%}"
    if far is None:
        return "the two versions of repshift note outputs in different ways"
    return f"head's numbers are {far:.2%} away from base's ({tolerance:.2%} are let through)"
