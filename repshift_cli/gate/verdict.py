"""The gate: rounds of both sides -> interval -> verdict, and what the process exits with.

Pure: `measure` gives the ratios of one round, wherever they come from, so that simulations and processes are judged by
the same lines. Statistics: a round is one fresh process per side; the ratio is of the two processes' medians. There are
two looks at most, after `first` and after `most` rounds, and each has half of the error allowed (Bonferroni), so that
looking twice costs nothing. A regression is a signed-rank test of "worse by at most delta", rejected by Holm's
procedure over the declared checks; a pass is the interval's upper end below delta. Sources: Kalibera and Jones 2013,
"Rigorous benchmarking in reasonable time"; duet benchmarking, arXiv 2001.05811; Laaber et al. 2019.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from repshift_cli.analysis import stats
from repshift_cli.analysis.comparison import (
    ABOUT,
    ABSENT,
    BETTER,
    SAME,
    WAVERING,
    WORSE,
    Finding,
    Lonely,
    exact_word,
    word_for,
)
from repshift_cli.analysis.stats import Estimate
from repshift_cli.gate.thresholds import OUTPUT
from repshift_cli.records import Case, Measurement, RepshiftError, UsageError
from repshift_cli.records.labels import labels

PASS, FAIL, INCONCLUSIVE, INFORM = "pass", "fail", "inconclusive", "inform"
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}
CONFIDENCE = 1 - (1 - stats.CONFIDENCE) / 2
"""Of each of the two looks, two-sided: 97.5%, so that both together keep 95%."""
LEVEL = (1 - CONFIDENCE) / 2
"""The one-sided error of each look over all checks together: 1.25%."""

WAY_ON = "close other programs and gate again, allow more rounds (--most-rounds), or learn the noise (--learn)"
"""What to do where a gate stays open."""
WAY_ON_FROM_QUICK = "close other programs and gate again, or without --quick, in more and longer rounds"
"""The same where the gate was quick, and has rounds of its own."""
AGAIN = "see its log in the folder of run files, and gate again"
"""What to do where head failed and did not fail again."""

NOISE_QUANTILE = 0.99
RESAMPLES = 2000


class NoBase(RepshiftError):
    """There is nothing to compare with, or it is not comparable."""

    exit_code = 4


class NothingMeasured(RepshiftError):
    """No case gave a figure on both sides."""

    exit_code = 5


@dataclass(frozen=True)
class Check:
    """One timed metric of one case; `delta` is the share by which it may get worse. It is judged if it `gates`."""

    case: Case
    metric: str
    delta: float
    gates: bool = True


@dataclass(frozen=True)
class Judged:
    """What the rounds say of one check. `ratio` is head / base turned so that above 1 is worse."""

    verdict: str
    ratio: Estimate
    rounds: int
    reason: str | None = None


Round = Mapping[Check, float]
Measure = Callable[[], Round]
"""One round of all checks: each one's ratio, above 1 being worse."""


# --- timed metrics ----------------------------------------------------------------------------------------------------


def least_rounds(checks: int) -> int:
    """With fewer rounds not even the clearest regression could be shown among so many checks."""
    return math.ceil(math.log2(max(checks, 1) / LEVEL))


def check_rounds(checks: Sequence[Check], most: int) -> None:
    """UsageError where the largest number of rounds cannot show any regression."""
    gating = sum(check.gates for check in checks)
    if gating and most < least_rounds(gating):
        raise UsageError(
            f"{most} rounds cannot show a regression among {gating} gated checks; most-rounds must be at least "
            f"{least_rounds(gating)}"
        )


def decide(
    checks: Sequence[Check], measure: Measure, first: int, most: int, confirm: bool = True
) -> dict[Check, Judged]:
    """Every check judged; what fails is measured once more, from the start, before it counts: it is to be confirmed."""
    check_rounds(checks, most)
    judged = _looks(checks, measure, first, most)
    failed = [check for check in checks if judged[check].verdict == FAIL]
    if failed and confirm:
        again = _looks(failed, measure, first, most)
        judged |= {check: _confirmed(judged[check], again[check]) for check in failed}
    return judged


def _looks(checks: Sequence[Check], measure: Measure, first: int, most: int) -> dict[Check, Judged]:
    """Judged after the first look where that decides the whole, else after the last: two looks, no more.

    It decides where nothing is open, and where something fails: what else is open cannot mend that.
    """
    rounds: list[Round] = []
    judged: dict[Check, Judged] = {}
    for count in (first, most):
        rounds += [measure() for _ in range(count - len(rounds))]
        judged = judge(checks, rounds)
        verdicts = {j.verdict for j in judged.values()}
        if FAIL in verdicts or INCONCLUSIVE not in verdicts:
            break
    return judged


def judge(checks: Sequence[Check], rounds: Sequence[Round]) -> dict[Check, Judged]:
    """The verdicts of one look at these rounds."""
    ratios = {check: [r[check] for r in rounds] for check in checks}
    gating = [check for check in checks if check.gates]
    p_values = [stats.signed_rank_p(ratios[check], 1 + check.delta) for check in gating]
    failed = {check for check, rejected in zip(gating, stats.holm(p_values, LEVEL), strict=True) if rejected}
    return {check: _judged(check, ratios[check], check in failed) for check in checks}


def _judged(check: Check, ratios: Sequence[float], failed: bool) -> Judged:
    figure = stats.hodges_lehmann(ratios, CONFIDENCE)
    if not check.gates:
        return Judged(INFORM, figure, len(ratios))
    if failed:
        return Judged(FAIL, figure, len(ratios))
    passed = figure.high is not None and figure.high < 1 + check.delta
    return Judged(PASS if passed else INCONCLUSIVE, figure, len(ratios))


def _confirmed(once: Judged, again: Judged) -> Judged:
    if again.verdict == FAIL:
        return dataclasses.replace(once, reason=f"confirmed in fresh processes: {change(again.ratio)}")
    return Judged(
        INCONCLUSIVE,
        once.ratio,
        once.rounds,
        f"not confirmed in fresh processes: {change(again.ratio)} the second time",
    )


def change(ratio: Estimate) -> str:
    """`+3.1% (+2.6% to +3.6%)`."""
    ends = "" if ratio.low is None or ratio.high is None else f" ({ratio.low - 1:+.1%} to {ratio.high - 1:+.1%})"
    return f"{ratio.value - 1:+.1%}{ends}"


# --- the noise of this runner -----------------------------------------------------------------------------------------


def noise(rounds: Sequence[Round], checks: Sequence[Check], first: int, seed: int = 0) -> dict[Check, float]:
    """How far A/A gates of `first` rounds wander on this runner: the 99th percentile of the change they report.

    From many A/A rounds, by resampling gates out of them (bootstrap, seeded).
    """
    order = random.Random(seed)
    found = {}
    for check in checks:
        logs = [math.log(r[check]) for r in rounds]
        gates = (order.choices(logs, k=first) for _ in range(RESAMPLES))
        sizes = sorted(abs(_centre(gate)) for gate in gates)
        found[check] = math.expm1(sizes[math.ceil(NOISE_QUANTILE * RESAMPLES) - 1])
    return found


def _centre(logs: Sequence[float]) -> float:
    return math.log(stats.hodges_lehmann([math.exp(x) for x in logs], 0.5).value)


# --- exact metrics ----------------------------------------------------------------------------------------------------


def exact(case: Case, base: Measurement, head: Measurement, tolerance: float | None) -> Finding:
    """A number without noise: it may get worse by the tolerance, as a share; None only informs.

    Single figures that waver by themselves change by more than `ABOUT`, where nothing else is said of them.
    """
    a, b = stats.point(base), stats.point(head)
    assert a is not None and b is not None
    wavers = tolerance is None and head.source in WAVERING
    word = exact_word(a, b, head.better, ABOUT if wavers else tolerance or 0.0)
    verdict = INFORM if tolerance is None else FAIL if word == WORSE else PASS
    ratio = Estimate(b / a) if a else None
    named = (head.metric, head.label, head.unit, head.better)
    return Finding(case, *named, True, a, b, ratio, word, tolerance or 0.0, verdict)


def timed(check: Check, judged: Judged, base: Measurement, head: Measurement) -> Finding:
    """A judged check as a finding; the measurements hold one sample per process."""
    a, b = stats.point(base), stats.point(head)
    assert a is not None and b is not None
    named = (head.metric, head.label, head.unit, head.better)
    turned = judged.ratio
    ratio = _inverse(turned) if head.better == "higher" else turned
    word = word_for(ratio, head.better, check.delta)
    word = {FAIL: WORSE, PASS: BETTER if word == BETTER else SAME}.get(judged.verdict, word)
    more = (judged.verdict, judged.rounds, judged.reason)
    return Finding(check.case, *named, False, a, b, ratio, word, check.delta, *more)


def _inverse(figure: Estimate) -> Estimate:
    low, high = (None if end is None else 1 / end for end in (figure.high, figure.low))
    return Estimate(1 / figure.value, low, high)


# --- the whole --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a gate found: every metric, the cases of one side only, and what to know about it all."""

    base: str
    head: str
    findings: tuple[Finding, ...]
    lonely: tuple[Lonely, ...] = ()
    notes: tuple[str, ...] = ()
    rounds: int = 0
    """All that were measured, with those that confirm a failure."""
    unsteady: tuple[Lonely, ...] = ()
    """Cases that failed on head once, and not when it was started again."""
    way_on: str = WAY_ON
    """What to do where the noise leaves something open."""

    @property
    def judged(self) -> list[Finding]:
        """The findings that gate."""
        return [f for f in self.findings if f.verdict not in ("", INFORM)]

    @property
    def names(self) -> dict[Case, str]:
        """What each case is called."""
        return labels([*(f.case for f in self.findings), *(one.case for one in (*self.lonely, *self.unsteady))])

    @property
    def broken(self) -> list[Lonely]:
        """Cases that base measures and head does not."""
        return [c for c in self.lonely if c.is_broken]

    @property
    def dropped(self) -> list[Lonely]:
        """Cases that base measures and head does not even plan."""
        return [c for c in self.lonely if c.side == "base" and c.status == ABSENT]

    @property
    def verdict(self) -> str:
        """fail before inconclusive before pass."""
        verdicts = {f.verdict for f in self.judged}
        if FAIL in verdicts or self.broken:
            return FAIL
        return INCONCLUSIVE if INCONCLUSIVE in verdicts or self.unsteady else PASS

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    @property
    def sentence(self) -> str:
        """The last line: which verdict, and why; what head has given up is no failure, and is said."""
        gone = [self.names[c.case] for c in self.dropped]
        return self._verdict_and_why() + (f"; no longer planned on head: {_few(gone)}" if gone else "")

    def _verdict_and_why(self) -> str:
        names = self.names
        if self.verdict == FAIL:
            failed = [in_words(f, names[f.case]) for f in self.judged if f.verdict == FAIL]
            failed += [f"{names[c.case]} no longer runs ({c.reason})" for c in self.broken]
            return f"FAIL: {_few(failed)}, against {self.base}"
        if self.verdict == INCONCLUSIVE:
            still = [f for f in self.judged if f.verdict == INCONCLUSIVE]
            said = [f"{names[f.case]} {f.label} {_open(f)}" for f in still]
            if not still:
                once = [f"{names[c.case]} ({c.reason})" for c in self.unsteady]
                return (
                    f"INCONCLUSIVE: failed on {self.head} once and not when it was started again: {_few(once)}; {AGAIN}"
                )
            return f"INCONCLUSIVE: the noise leaves open whether {self.head} is slower: {_few(said)}; {self.way_on}"
        gains = [in_words(f, names[f.case]) for f in self.judged if f.word == BETTER]
        more = f"; better: {_few(gains)}" if gains else ""
        count = len({f.case for f in self.judged})
        return f"PASS: no regression in {count} {'case' if count == 1 else 'cases'} against {self.base}{more}"


def in_words(finding: Finding, name: str) -> str:
    """`flash latency changed by +3.1% (+2.6% to +3.6%)`; of outputs, what is other about them."""
    if finding.metric == OUTPUT:
        return f"{name} {finding.label}: {finding.reason or 'as on base'}"
    if finding.ratio is None:
        return f"{name} {finding.label} went from {finding.base:g} to {finding.head:g}"
    return f"{name} {finding.label} changed by {change(finding.ratio)}"


def told(finding: Finding, name: str) -> str:
    """In words, with the reason."""
    text = in_words(finding, name)
    return text if finding.metric == OUTPUT or not finding.reason else f"{text}; {finding.reason}"


def _open(finding: Finding) -> str:
    text = change(finding.ratio) if finding.ratio else "not measured"
    return f"{text}, {finding.reason}" if finding.reason else text


def _few(parts: Sequence[str], most: int = 3) -> str:
    return "; ".join(parts[:most]) + (f"; and {len(parts) - most} more" if len(parts) > most else "")
