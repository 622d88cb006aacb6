"""What gates and what only informs: the `[thresholds]` table of a profile.

    [thresholds]
    rounds = 12                     # processes per side before the first judgement
    most-rounds = 32                # and before the last, where the first left something open
    latency = 0.01                  # timed: the least slow-down that matters, as a share
    macs = 0                        # an exact number: the share by which it may grow
    output = 0.05                   # how far head's output may be from base's, as a share of its length; the default
    throughput = "inform"           # shown, never judged; so is every metric that is not named

    [thresholds.cases."flash+repshift keep=0.5"]
    latency = 0.02

The words of a case table must all be in the case: its variant, or a field as in `Case.key`. Later tables go first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repshift_cli.records import Case, UsageError

INFORM = "inform"
OUTPUT, OUTPUT_TOLERANCE = "output", 0.05
"""What the two sides put out is compared unless told otherwise. Kernels of another order of summation differ by 1e-6 in
fp32 and by half a percent in bf16; a token that is kept in another's place moves an output by some percent."""
ROUNDS, MOST_ROUNDS, PROCESS_ROUNDS = 12, 32, 10
QUICK_ROUNDS, QUICK_MOST, QUICK_PROCESS, QUICK_LEAST = 9, 16, 12, 0.02
"""A quick gate: fewer rounds, for slow-downs of 2% and more. Nine are the fewest in which
a regression among four cases can be shown; what it promises is simulated in tests/test_gate.py."""
COUNTS = {"rounds": ROUNDS, "most_rounds": MOST_ROUNDS, "process_rounds": PROCESS_ROUNDS}


@dataclass(frozen=True)
class Rule:
    """A share by which a metric may get worse in cases that hold all `words`; None: it only informs."""

    metric: str
    share: float | None
    words: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Thresholds:
    """How long a gate measures (in processes per side) and what it judges by."""

    rounds: int = ROUNDS
    most_rounds: int = MOST_ROUNDS
    process_rounds: int = PROCESS_ROUNDS
    least: float = 0.0
    """No time may be judged by less than this share, whatever the rules say."""
    rules: tuple[Rule, ...] = ()

    def share(self, case: Case, metric: str) -> float | None:
        """How much worse the metric may get in this case, or None where it does not gate."""
        words = {case.variant, *case.key.split()}
        fitting = [r for r in self.rules if r.metric == metric and r.words <= words]
        unnamed = OUTPUT_TOLERANCE if metric == OUTPUT else None
        return fitting[-1].share if fitting else unnamed

    @property
    def is_quick(self) -> bool:
        """Whether they are those of a quick gate, which times what gates and nothing else."""
        return self.least > 0

    @property
    def judges(self) -> bool:
        """Whether any figure gates, beside what the sides compute."""
        return any(rule.share is not None and rule.metric != OUTPUT for rule in self.rules)


def quick(limits: Thresholds) -> Thresholds:
    """The same rules, measured in fewer rounds; counts that are lower than the usual already stay."""
    few = limits.process_rounds < PROCESS_ROUNDS
    return Thresholds(
        min(limits.rounds, QUICK_ROUNDS),
        min(limits.most_rounds, QUICK_MOST),
        limits.process_rounds if few else QUICK_PROCESS,
        QUICK_LEAST,
        limits.rules,
    )


def parse(table: Mapping[str, Any], place: str) -> Thresholds:
    """The thresholds of a profile; UsageError names `place` and the key that cannot be used."""
    counts, rules = dict(COUNTS), list[Rule]()
    cases: Mapping[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in COUNTS:
            counts[name] = _count(value, place, key)
        elif name == "cases":
            cases = _table(value, place, key)
        else:
            rules.append(Rule(name, _share(value, place, key)))
    for words, own in cases.items():
        for key, value in _table(own, place, f"cases.{words}").items():
            rules.append(Rule(key.replace("-", "_"), _share(value, place, f"{words}: {key}"), frozenset(words.split())))
    if counts["most_rounds"] < counts["rounds"]:
        raise _wrong(place, "most-rounds", "is below rounds")
    return Thresholds(**counts, rules=tuple(rules))


def _count(value: Any, place: str, key: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(place, key, f"{value!r} is not a whole number above 0")
    return value


def _share(value: Any, place: str, key: str) -> float | None:
    if value == INFORM:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise _wrong(place, key, f'{value!r} is neither a share from 0 to 1, like 0.01 for 1%, nor "{INFORM}"')
    return float(value)


def _table(value: Any, place: str, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(place, key, "is a table")
    return value


def _wrong(place: str, key: str, what: str) -> UsageError:
    return UsageError(f"{place}: thresholds: {key}: {what}")
