"""Two evaluations side by side: their figures are paired sample by sample where both saw the same samples.

A run file says which samples its variants saw: `listing` is a digest of all samples of the data, `places` those that
were seen, by their place in it, in the order of the figures.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from repshift_cli.analysis import paired, stats
from repshift_cli.analysis.stats import Estimate
from repshift_cli.records import Case, Measurement, Record, Run

OPTION = "evaluation"
"""Where a run's options hold what an evaluation says of its data; no other run has it."""
RANDOM_WEIGHTS = "random"


@dataclass(frozen=True)
class Pairing:
    """How two runs' figures belong together: `order` has for each sample of head its place among base's; without it
    `reason` says why nothing is paired. `resamples` are paired where both drew the same ones."""

    order: tuple[int, ...] | None
    reason: str = ""
    resamples: bool = False
    resampled: bool = False
    """Whether any figure of the runs is resampled."""

    @property
    def words(self) -> str:
        """What must be said of it, in one line."""
        if self.order is None:
            return f"labelled figures are compared as independent samples: {self.reason}"
        more = "" if self.resamples or not self.resampled else " (bootstrapped ones are not: their seeds differ)"
        return f"labelled figures are paired on the {len(self.order)} samples that both runs saw{more}"


def is_evaluation(run: Run) -> bool:
    """Whether the run file is of `repshift eval`."""
    return isinstance(run.options.get(OPTION), dict)


def pairing(base: Run, head: Run) -> Pairing | None:
    """How they belong together; None where one of them is no evaluation."""
    if not is_evaluation(base) or not is_evaluation(head):
        return None
    (a, old), (b, new) = (_seen(run.options[OPTION]) for run in (base, head))
    if a is None or b is None:
        return Pairing(None, "one of the run files does not say which samples it saw")
    if a != b:
        return Pairing(None, "their data differ (other samples, or other labels or texts of them)")
    if set(old) != set(new):
        both = len(set(old) & set(new))
        return Pairing(
            None,
            f"of {len(old)} and {len(new)} samples {both} are the same; evaluate both with the same --seed and "
            "--limit, or without --limit",
        )
    place = {sample: number for number, sample in enumerate(old)}
    resampled = any(m.statistic == "bootstrap" for record in head.records for m in record.measurements)
    return Pairing(tuple(place[sample] for sample in new), "", old == new and _seed(base) == _seed(head), resampled)


def _seen(about: Mapping[str, Any]) -> tuple[str | None, list[int]]:
    told = about.get("seen")
    if not isinstance(told, dict) or not isinstance(told.get("places"), list):
        return None, []
    return str(told.get("listing")), told["places"]


def _seed(run: Run) -> Any:
    return run.options.get("seed", 0)


def by_draw(run: Run) -> dict[Case, Record]:
    """An evaluation's records by their case, the seed of which says no more than which draw of the run it is.

    The seed orders the samples and draws at random; where the weights are random too, it is another model's.
    """
    seeds: dict[Case, list[int]] = defaultdict(list)
    for record in run.records:
        seeds[dataclasses.replace(record.case, seed=0)].append(record.case.seed)
    found = {}
    for record in run.records:
        case = record.case
        if case.weights != RANDOM_WEIGHTS:
            own = sorted(seeds[dataclasses.replace(case, seed=0)])
            case = dataclasses.replace(case, seed=own.index(case.seed))
        found[case] = record
    return found


def difference(base: Measurement, head: Measurement, how: Pairing | None) -> Estimate | None:
    """head - base with its interval: paired where that can be, else of independent samples; None without intervals."""
    old: Sequence[float] | None = None
    if how and head.statistic == "bootstrap":
        old = base.samples if how.resamples else None
    elif how and how.order is not None and len(how.order) == len(base.samples):
        old = [base.samples[place] for place in how.order]
    if old is None or len(old) != len(head.samples):
        return _of_samples(base, head)
    return _of_pairs([new - own for new, own in zip(head.samples, old, strict=True)], head.statistic)


def _of_pairs(differences: list[float], statistic: str) -> Estimate:
    if statistic == "wilson":
        return Estimate(*paired.tango(differences))
    if statistic == "bootstrap":
        return Estimate(*paired.percentiles(differences))
    return stats.mean_interval(differences)


def _of_samples(base: Measurement, head: Measurement) -> Estimate | None:
    """Of two figures with intervals, taken as independent: their half-widths add as squares.

    Newcombe's hybrid (Statistics in Medicine 17, 1998, method 10).
    """
    a, b = stats.estimate(base), stats.estimate(head)
    if not a or not b or a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    low = b.value - a.value - math.hypot(b.value - b.low, a.high - a.value)
    high = b.value - a.value + math.hypot(b.high - b.value, a.value - a.low)
    return Estimate(b.value - a.value, low, high)
