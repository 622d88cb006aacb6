"""The lanes of a comparison: each case on its way, what it is compared with, and the record that comes of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.analysis import stats
from repshift_cli.machine import cpu_state, gpu_state
from repshift_cli.machine.cpu_state import CpuReading
from repshift_cli.records import WITHOUT_ATTENTION, Case, Measurement, Metric, Record, Step

Derived = tuple[Sequence[Measurement], Sequence[str]]
Derive = Callable[[Step, Sequence[Measurement], float], Derived]

USUAL_ROUNDS = 10
"""Before this many rounds no precision is believed."""

LATENCY = Metric("latency", "latency", "ms", "lower", "median", 12, "timed")
THROUGHPUT = Metric("throughput", "samples/s", "1/s", "higher", "median", 20, "timed")
OVER_FLASH = Metric("speedup_vs_flash", "vs flash", "x", "higher", "hodges-lehmann", 10, "timed")
OVER_VANILLA = Metric("speedup_vs_vanilla", "vs vanilla", "x", "higher", "hodges-lehmann", 11, "timed")
OVER_UNPRUNED = Metric("speedup_vs_unpruned", "vs unpruned", "x", "higher", "hodges-lehmann", 10, "timed")
OVER_ORACLE = Metric("time_vs_oracle", "time/oracle", "x", "lower", "hodges-lehmann", 18, "timed")
SET_ASIDE = Metric("latency_throttled", "throttled", "ms", "lower", "median", 120, "timed")

BASELINES = {"flash": OVER_FLASH, "vanilla": OVER_VANILLA, WITHOUT_ATTENTION: OVER_UNPRUNED}
"""The unpruned variants that others are compared with."""


@dataclass
class Lane:
    """One case of a comparison on its way: its step, its samples, or why it fell out."""

    case: Case
    tokens: tuple[int, ...]
    step: Step | None = None
    kernel: str | None = None
    paths: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    measurements: list[Measurement] = field(default_factory=list)
    failure: str | None = None
    steady: bool = True
    warmup: int = 0
    per_round: int = 1
    samples: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    throttled: list[float] = field(default_factory=list)


@dataclass
class Rounds:
    """How the timed rounds of a comparison went; `needed` is how many the precision asks for, as last looked at.

    A look takes milliseconds and is another chance to stop by luck, so the looks are a tenth apart.
    """

    count: int = 0
    needed: float = math.inf
    next_look: int = USUAL_ROUNDS
    stopped_by: str | None = None
    readings: list[Any] = field(default_factory=list)
    causes: set[str] = field(default_factory=set)

    @property
    def of_gpu(self) -> list[Any]:
        """The readings that are none of a CPU."""
        return [reading for reading in self.readings if not isinstance(reading, CpuReading)]


def references(lane: Lane, lanes: Sequence[Lane]) -> list[tuple[str, Lane]]:
    """What a lane is compared with, among those that ran: unpruned lanes by back end, the oracle at the same counts."""
    found = []
    for name in (*BASELINES, "oracle"):
        for other in lanes:
            if other.step is not None and other is not lane and _is_reference(other.case, name, lane.case):
                found.append((name, other))
    return found


def _is_reference(other: Case, name: str, case: Case) -> bool:
    if other.execution != case.execution:
        return False
    if name != "oracle":
        return other.variant == name
    return other.pruning == name and other.attention == case.attention and other.schedule == case.schedule


def record(lane: Lane, lanes: list[Lane], rounds: Rounds, derive: Derive, precision: float) -> Record:
    """What became of a lane, held against the others of its comparison."""
    if lane.failure is not None:
        return Record(lane.case, "failed", reason=lane.failure, tokens=lane.tokens, kernel=lane.kernel)
    assert lane.step is not None
    derived, words = derive(lane.step, lane.measurements, statistics.median(lane.medians))
    return Record(
        lane.case,
        "ok",
        tokens=lane.tokens,
        kernel=lane.kernel,
        paths=lane.paths,
        rounds=rounds.count,
        warmup=lane.warmup,
        stopped_by=rounds.stopped_by,
        measurements=(
            *_timings(lane, lanes),
            *gpu_state.measurements(rounds.of_gpu),
            *cpu_state.measurements(rounds.readings),
            *lane.measurements,
            *derived,
        ),
        warnings=(*_warnings(lane, rounds, precision), *words),
    )


def _timings(lane: Lane, lanes: list[Lane]) -> Iterator[Measurement]:
    yield LATENCY.of(*lane.samples, per_round=lane.per_round)
    assert lane.step is not None
    units = Metric(**{**vars(THROUGHPUT), "label": f"{lane.step.subject.units}/s"})
    yield units.of(*(1000 * lane.case.batch / ms for ms in lane.samples), per_round=lane.per_round)
    by_name = dict(references(lane, lanes))
    for name, metric in BASELINES.items():
        if (name == WITHOUT_ATTENTION) != (lane.case.attention == WITHOUT_ATTENTION):
            continue
        if name in by_name:
            yield metric.of(*stats.paired_ratios(by_name[name].medians, lane.medians))
        else:
            yield metric.missing(_why_unpaired(name, lane, lanes))
    if "oracle" in by_name:
        yield OVER_ORACLE.of(*stats.paired_ratios(lane.medians, by_name["oracle"].medians))
    if lane.throttled:
        yield SET_ASIDE.of(*lane.throttled, per_round=lane.per_round)


def _why_unpaired(name: str, lane: Lane, lanes: list[Lane]) -> str:
    if lane.case.variant == name:
        return f"reference: this is {name} itself"
    if any(_is_reference(other.case, name, lane.case) for other in lanes):
        return f"{name} failed, so nothing can be compared with it"
    return f"no {name} in this run; add it to --variant"


def _warnings(lane: Lane, rounds: Rounds, precision: float) -> Iterator[str]:
    assert lane.step is not None
    yield from cpu_state.warnings(rounds.readings)
    yield from lane.step.subject.warnings
    yield from lane.words
    if not lane.steady:
        yield "warm-up did not settle; close other programs or raise --budget"
    if rounds.stopped_by == "budget":
        yield f"the time budget ended before ±{precision:.1%} was reached; --budget raises it"
    if count := stats.outliers(lane.medians):
        yield f"{count} of {rounds.count} rounds are outliers (kept); something else may be running here"
    if lane.throttled:
        causes = ", ".join(sorted(rounds.causes))
        yield f"{len(lane.throttled) // lane.per_round} rounds under a hardware throttle were repeated ({causes})"
    yield from gpu_state.warnings(rounds.of_gpu)
