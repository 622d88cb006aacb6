"""Two runs side by side: which cases pair up, how a metric changed, and whether their machines may be compared.

Pure. A ratio here is always head / base; `worse` turns it so that above 1 is worse, whichever way the metric is better.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from repshift_cli.analysis import labelled, stats
from repshift_cli.analysis.labelled import Pairing
from repshift_cli.analysis.stats import Estimate
from repshift_cli.records import Case, Machine, Measurement, Record, Run

LEAST = 0.01
"""A change below this share is no change worth a word, unless told otherwise (../README.md, "The gate")."""

EXACT = "value"
WITHOUT_ROUNDS = (EXACT, "wilson")
"""Statistics of what is taken once, not in every round."""
WITHIN = ("paired", "computed")
"""Sources of what compares variants of one run with each other: across runs it says nothing."""
LABELLED = "labelled"
"""The source of figures that labelled samples give, a sample of all there could be."""
WAVERING = ("driver", "sampled", "timed")
"""Sources of single figures that differ from run to run of the same code: resident size, energy, time to compile."""
ABOUT = 0.02
"""A change of those below this share is none."""
"""The statistic of a metric without noise."""

WORSE, BETTER, SAME, OPEN, CHANGED = "worse", "better", "same", "inconclusive", "changed"
CHANGES = (WORSE, BETTER, CHANGED)


@dataclass(frozen=True)
class Finding:
    """One metric of one case on both sides. `verdict` is empty where nothing is judged; `reason` says more.

    `aside`: it explains other figures (clocks, steal, the load of the machine) and is none to be judged itself.
    """

    case: Case
    metric: str
    label: str
    unit: str
    better: str
    exact: bool
    base: float | None
    head: float | None
    ratio: Estimate | None
    word: str
    delta: float
    verdict: str = ""
    rounds: int = 0
    reason: str | None = None
    aside: bool = False
    difference: Estimate | None = None
    """head - base of a figure of labelled samples, in its unit (percentage points of a share)."""

    @property
    def share_of_noise(self) -> float:
        """The change in multiples of what it may be by chance: half its interval, or the threshold of a single figure.

        A number without any noise that changed has infinitely many.
        """
        if self.word == SAME and self.exact:
            return 0.0
        noise = math.log1p(self.delta) if self.exact else _half(self.ratio)
        return self.effect / noise if noise else math.inf if self.effect else 0.0

    @property
    def effect(self) -> float:
        """The size of the change, on a logarithmic scale; what cannot be told comes first."""
        if self.ratio is None or self.ratio.value <= 0:
            return math.inf
        return abs(math.log(self.ratio.value))


def _half(ratio: Estimate | None) -> float | None:
    """Half the interval of a ratio, on a logarithmic scale."""
    if ratio is None or not ratio.low or not ratio.high:
        return None
    return math.log(ratio.high / ratio.low) / 2


ABSENT = "absent"


@dataclass(frozen=True)
class Lonely:
    """A case that only one `side` measured; `status` is that of the other side's record, or absent, with its words."""

    case: Case
    side: str
    status: str
    reason: str

    @property
    def is_broken(self) -> bool:
        """Whether base measured it and it fails on head, or is refused there."""
        return self.side == "base" and self.status in ("failed", "skipped")


def worse(ratio: Estimate, better: str) -> Estimate:
    """head / base turned so that above 1 is worse."""
    if better != "higher":
        return ratio
    low, high = (None if end is None else 1 / end for end in (ratio.high, ratio.low))
    return Estimate(1 / ratio.value, low, high)


def word_for(ratio: Estimate, better: str, delta: float) -> str:
    """Better, worse or the same by more than `delta`, as far as the whole interval says so."""
    turned = worse(ratio, better)
    if turned.low is None or turned.high is None:
        return OPEN
    if turned.low > 1 + delta:
        return WORSE
    if turned.high < 1 / (1 + delta):
        return BETTER
    return SAME if turned.high < 1 + delta and turned.low > 1 / (1 + delta) else OPEN


def exact_word(base: float, head: float, better: str, tolerance: float) -> str:
    """The same for numbers without noise: any change above the tolerance counts."""
    if abs(head - base) <= tolerance * abs(base) + 1e-9 * abs(base):
        return SAME
    return WORSE if (head > base) == (better != "higher") else BETTER


# --- stored runs ------------------------------------------------------------------------------------------------------


def paired(base: Run, head: Run) -> tuple[list[tuple[Record, Record]], list[Lonely]]:
    """The cases that both runs measured, and those that only one did."""
    sides = {"base": _by_case(base), "head": _by_case(head)}
    both, lonely = [], []
    for case in dict.fromkeys([*sides["base"], *sides["head"]]):
        records = {side: found.get(case) for side, found in sides.items()}
        ran = [side for side, record in records.items() if record and record.status == "ok"]
        if len(ran) == 2:
            both.append((sides["base"][case], sides["head"][case]))
        elif ran:
            other = records["head" if ran == ["base"] else "base"]
            reason = f"{other.status}: {other.reason}" if other else "it has no such case"
            lonely.append(Lonely(case, ran[0], other.status if other else ABSENT, " ".join(reason.split())))
    return both, lonely


def _by_case(run: Run) -> dict[Case, Record]:
    return labelled.by_draw(run) if labelled.is_evaluation(run) else {record.case: record for record in run.records}


def compare(base: Run, head: Run, delta: float = LEAST) -> tuple[list[Finding], list[Lonely]]:
    """Every metric that both runs measured, the largest change first."""
    both, lonely = paired(base, head)
    how = labelled.pairing(base, head)
    found = []
    for old, new in both:
        for m in new.measurements:
            before = next(
                (o for o in old.measurements if (o.metric, o.source, o.unit) == (m.metric, m.source, m.unit)), None
            )
            if before is not None and before.samples and m.samples and m.source not in WITHIN:
                aside = m.detail and not m.gateable
                found.append(dataclasses.replace(between(new.case, before, m, delta, how), aside=aside))
    return sorted(found, key=lambda f: -f.effect), lonely


def between(case: Case, base: Measurement, head: Measurement, delta: float, how: Pairing | None = None) -> Finding:
    """How one metric changed from one stored run to another: rounds are not paired across runs, samples by `how`."""
    a, b = stats.point(base), stats.point(head)
    assert a is not None and b is not None
    if head.source == LABELLED:
        change = labelled.difference(base, head, how)
        ratio = _in_relation(change, a)
        word = word_for(ratio, head.better, delta) if ratio else OPEN
        word = SAME if a == b else word
        return Finding(
            case, head.metric, head.label, head.unit, head.better, False, a, b, ratio, word, delta, difference=change
        )
    exact = head.statistic in WITHOUT_ROUNDS
    if exact:
        ratio = Estimate(b / a) if a else None
        delta = max(delta, ABOUT) if head.source in WAVERING else 0.0
        word = exact_word(a, b, head.better, delta)
    else:
        rounds = [stats.round_medians(m.samples, m.per_round) for m in (base, head)]
        ratio = stats.unpaired_ratio(*rounds) if min(map(min, rounds)) > 0 else None
        word = word_for(ratio, head.better, delta) if ratio else OPEN
    return Finding(case, head.metric, head.label, head.unit, head.better, exact, a, b, ratio, word, delta)


def _in_relation(change: Estimate | None, base: float) -> Estimate | None:
    """A difference with its interval as head / base; None where base is not above 0, or nothing of head is."""
    if change is None or change.low is None or change.high is None or base <= 0 or base + change.value <= 0:
        return None
    low, high = (1 + end / base for end in (change.low, change.high))
    return Estimate(1 + change.value / base, max(low, 1e-9), high)


# --- machines ---------------------------------------------------------------------------------------------------------


def differences_of(old: Run, new: Run) -> dict[str, str]:
    """As `differences`, of all machines that two runs were measured on."""
    found: dict[str, str] = {}
    first = old.measured_on[0]
    for machine in (*old.measured_on[1:], *new.measured_on):
        found |= differences(first, machine)
    return found


def fingerprint(machine: Machine) -> dict[str, str]:
    """What must agree before two times may be judged against each other."""
    on_gpu = machine.device.startswith("cuda")
    named = {
        "device": machine.device.partition(":")[0],
        "GPU": machine.device_name if on_gpu else None,
        "driver": machine.driver.partition(".")[0] if machine.driver else None,
        "CUDA": machine.cuda,
        "CPU": machine.cpu,
        "threads": machine.threads,
        "torch": machine.packages.get("torch"),
    }
    return {name: str(value) for name, value in named.items() if value is not None}


def differences(base: Machine, head: Machine) -> dict[str, str]:
    """Where the fingerprints differ, by name, in words: `torch 2.12.0 and 2.13.0`."""
    a, b = fingerprint(base), fingerprint(head)
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)]
    return {name: f"{name} {a.get(name, 'none')} and {b.get(name, 'none')}" for name in names}


def dtype_difference(base: Run, head: Run) -> list[str]:
    """The dtypes, where the two runs have none in common."""
    a, b = ({r.case.dtype for r in run.records} for run in (base, head))
    return [] if not a or not b or a & b else [f"dtype {', '.join(sorted(a))} and {', '.join(sorted(b))}"]


def without_place(run: Run) -> Run:
    """The run with cases that name neither device nor dtype, so that those of other machines pair up with them.

    A run with several dtypes keeps them: its cases could not be told apart.
    """
    dtypes = {r.case.dtype for r in run.records}
    gone: dict[str, Any] = {"device": "any"} | ({"dtype": "any"} if len(dtypes) == 1 else {})
    records = tuple(dataclasses.replace(r, case=dataclasses.replace(r.case, **gone)) for r in run.records)
    return dataclasses.replace(run, records=records)


def described(finding: Finding) -> Finding:
    """The finding without a judgement: that there is a change, not that it is for the better."""
    word = {WORSE: CHANGED, BETTER: CHANGED}.get(finding.word, finding.word)
    return dataclasses.replace(finding, word=word)
