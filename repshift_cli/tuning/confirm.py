"""What was found, held against its controls on samples that the search has not seen, every schedule of them timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from repshift_cli.analysis import stats
from repshift_cli.records import Case, Measurement, Metric, Record, one_line
from repshift_cli.records.tuning import CHOSEN, FOUND, NOTHING, Confirmed
from repshift_cli.sweep.plan import Planned
from repshift_cli.tuning.clock import Clock, is_speedup
from repshift_cli.tuning.order import CONTROLS, Goal
from repshift_cli.tuning.search import Scored
from repshift_cli.tuning.space import Candidate

MOST_POINTS = 5
"""Schedules of a front that are confirmed."""
SEEDS = 3
"""Random dropping at the same schedule is drawn so often, and the mean is compared with."""
PAPER, SAME = "the paper's", "random at the same schedule"


def searched(control: str) -> str:
    """The role of the best that the same search found for a control."""
    return f"{control} searched alike"


CONTROLLED = (SAME, *map(searched, CONTROLS))
"""What a schedule must beat to count as found."""


@dataclass(frozen=True)
class Row:
    """What is to be confirmed: a role, the found schedule (by number) that it belongs to, and what is known of it."""

    role: str
    number: int
    planned: Planned
    scored: Scored | None = None


def rows(
    found: Sequence[Scored], controls: Mapping[str, Sequence[Scored]], paper: Sequence[Candidate],
    plan: Callable[[Candidate], Planned],
) -> list[Row]:  # fmt: skip
    """Every found schedule with random at the same schedule, the controls searched alike, and the paper's schedule.

    Of a control's finds the one of the least loss is taken among those predicted to be as fast, else its fastest.
    """
    made = []
    for number, scored in enumerate(found, start=1):
        made.append(Row(CHOSEN, number, scored.planned, scored))
        own = scored.candidate
        same = Candidate("random", own.layers, own.keep, protect=own.protect)
        made.append(Row(SAME, number, plan(same)))
        for control, others in controls.items():
            fast = [s for s in others if s.milliseconds <= scored.milliseconds]
            pool = sorted(fast, key=lambda s: s.loss) or sorted(others, key=lambda s: s.milliseconds)
            made += [Row(searched(control), number, s.planned, s) for s in pool[:1]]
        made += [Row(PAPER, number, plan(candidate)) for candidate in paper]
    return [row for row in made if row.planned.refused is None]


def confirmed(
    asked: Sequence[Row], losses: Callable[[Case], np.ndarray], metric: Metric, clock: Clock
) -> list[Confirmed]:
    """The rows with their losses on the held-out samples, paired differences, and measured times."""
    told: list[Confirmed] = []
    times = clock([row.planned for row in asked])
    own: np.ndarray | None = None
    known: dict[Case, np.ndarray | str] = {}
    for row in asked:
        case = row.planned.case
        if case not in known:
            known[case] = _tried(case, losses)
        values = known[case]
        one = Confirmed(row.role, row.number, case, row.planned.tokens, metric.missing("it failed"))
        if isinstance(values, str):
            told.append(replace(one, failure=values))
            continue
        if row.role == CHOSEN:
            own = values
        versus = versus_of(metric).of(*(own - values)) if own is not None and row.role != CHOSEN else None
        scored = row.scored
        told.append(
            replace(
                _timed(one, times.get(case)),
                loss=metric.of(*values),
                versus=versus,
                calibration=scored.loss if scored else None,
                predicted=scored.milliseconds if scored else None,
            )
        )
    return told


def _tried(case: Case, losses: Callable[[Case], np.ndarray]) -> np.ndarray | str:
    """The losses, of random dropping the mean of several draws; the reason where the case cannot be run."""
    draws = range(case.seed, case.seed + (SEEDS if case.pruning == "random" else 1))
    try:
        return np.mean([losses(replace(case, seed=seed)) for seed in draws], axis=0)
    except Exception as error:
        return one_line(error)


def versus_of(metric: Metric) -> Metric:
    """The difference between two schedules in this loss, sample by sample."""
    return replace(metric, name=f"{metric.name}_versus", label=f"{metric.label} against it", source="paired")


def _timed(one: Confirmed, record: Record | None) -> Confirmed:
    if record is None or record.status != "ok":
        return one
    ratios = [m for m in record.measurements if is_speedup(m)]
    return replace(one, latency=record.measurement("latency"), speedup=next(iter(ratios), None))


# --- the verdict ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """`status` is found or nothing; `number` is the schedule recommended."""

    status: str
    sentence: str
    number: int | None = None


def chance(one: Confirmed) -> float:
    """The p-value of the found schedule's having less loss than this one; 1 where it has not."""
    figure = stats.estimate(one.versus) if one.versus is not None else None
    if one.versus is None or figure is None or figure.value >= 0:
        return 1.0
    return stats.mean_p(one.versus.samples)


def verdict(told: Sequence[Confirmed], goal: Goal, loss: str) -> Verdict:
    """The first schedule that beats random at the same schedule and every control searched alike.

    It must beat all of them, so that its p-value is the largest of those; of several schedules these are judged by
    Holm's procedure.
    """
    why, found = "", list(_found(told, goal))
    against = [[c for c in told if c.number == own.number and c.role in CONTROLLED and not c.failure] for own in found]
    hardest = [max(controls, key=chance, default=None) for controls in against]
    p_values = [chance(one) if one is not None else 1.0 for one in hardest]
    believed = stats.holm(p_values, 1 - stats.CONFIDENCE)
    for own, controls, hard, yes in zip(found, against, hardest, believed, strict=True):
        if yes:
            names = ", ".join(dict.fromkeys(c.role for c in controls))
            return Verdict(FOUND, f"found: less {loss} than {names}{_speed(own, goal)}", own.number)
        why = why or (f": not shown to lose less than {hard.role}" if hard is not None else "")
    return Verdict(NOTHING, f"nothing found that beats random on your data{why}")


def _found(told: Sequence[Confirmed], goal: Goal) -> Iterator[Confirmed]:
    """What was found, as far as it ran: the middle of a front first, or what was measured to reach the target."""
    own = [c for c in told if c.role == CHOSEN and c.failure is None]
    if goal.target is not None:
        return iter(sorted(own, key=lambda c: not _reaches(c, goal.target)))
    middle = (len(own) - 1) / 2 if goal.front else 0
    return iter(sorted(own, key=lambda c: abs(own.index(c) - middle)))


def _reaches(own: Confirmed, target: float | None) -> bool:
    figure = _speedup(own)
    return figure is not None and target is not None and figure.value >= target


def _speedup(own: Confirmed) -> stats.Estimate | None:
    return stats.estimate(own.speedup) if own.speedup is not None else None


def _speed(own: Confirmed, goal: Goal) -> str:
    """Its measured speed-up in words, and whether it misses the target."""
    figure = _speedup(own)
    if figure is None:
        return "; its speed-up could not be measured"
    said = f", measured {figure.value:.2f}x as fast as the unpruned model ({interval(own.speedup)})"
    if goal.target is not None and not _reaches(own, goal.target):
        said += f", which misses the target of {goal.target:g}x"
    return said


def interval(measurement: Measurement | None) -> str:
    """`1.42–1.58`, or that there is none."""
    figure = stats.estimate(measurement) if measurement is not None else None
    if figure is None or figure.low is None or figure.high is None:
        return "no interval"
    return f"{figure.low:.3g} to {figure.high:.3g}"
