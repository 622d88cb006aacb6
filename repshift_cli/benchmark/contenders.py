"""The contenders of a comparison: each case on its way, what it is compared with, and the record that comes of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.analysis import stats
from repshift_cli.machine import cpu_state, gpu_state
from repshift_cli.machine.cpu_state import CpuReading
from repshift_cli.records import OPERATORS, WITHOUT_ATTENTION, Case, Measurement, Metric, Output, Record, Step

Derived = tuple[Sequence[Measurement], Sequence[str]]
Derive = Callable[[Step, Sequence[Measurement], float], Derived]

LEAST_ROUNDS = 6
"""Fewer rounds give no 95% interval."""
USUAL_ROUNDS = 10
"""Before this many rounds no precision is believed."""

LATENCY = Metric(
    "latency",
    "latency",
    "ms",
    "lower",
    "median",
    "timed",
    "Time of one forward of the whole batch, by CUDA events on a GPU and by the host's clock on a CPU.",
)
THROUGHPUT = Metric(
    "throughput",
    "samples/s",
    "1/s",
    "higher",
    "inverse-median",
    "timed",
    "Samples per second: the batch over the latency.",
)
_RATIO = ("x", "higher", "hodges-lehmann", "timed")
OVER_FLASH = Metric(
    "speedup_vs_flash",
    "vs flash",
    *_RATIO,
    "How many times as fast as the unpruned model on FlashAttention, from the ratios within each round.",
)
OVER_VANILLA = Metric(
    "speedup_vs_vanilla",
    "vs vanilla",
    *_RATIO,
    "How many times as fast as the unpruned model on materialised attention, from the ratios within each round.",
)
OVER_SDPA = Metric(
    "speedup_vs_sdpa",
    "vs sdpa",
    *_RATIO,
    "How many times as fast as the unpruned model on what torch's attention picks by itself, where that is measured.",
)
OVER_EAGER = Metric(
    "speedup_vs_eager",
    "vs eager",
    *_RATIO,
    "How many times as fast as the unpruned model on its library's own attention, where that is measured.",
)
OVER_UNPRUNED = Metric(
    "speedup_vs_unpruned",
    "vs unpruned",
    *_RATIO,
    "How many times as fast as the unpruned model where there is no attention to choose, from the ratios of rounds.",
)
OVER_DECODE = Metric(
    "speedup_vs_decode",
    "vs decode",
    *_RATIO,
    "How many times as fast as the plain decode of one query, from the ratios within each round.",
)
OVER_ORACLE = Metric(
    "time_vs_oracle",
    "time/oracle",
    "x",
    "lower",
    "hodges-lehmann",
    "timed",
    "Time over that of the oracle, which drops as many tokens without choosing them: what the choice costs.",
)
SET_ASIDE = Metric(
    "latency_throttled",
    "throttled",
    "ms",
    "lower",
    "median",
    "timed",
    "Times of rounds under a hardware throttle, which were repeated and count in no other figure.",
    gateable=False,
    detail=True,
)
METRICS = (
    *(LATENCY, THROUGHPUT, OVER_FLASH, OVER_VANILLA, OVER_SDPA, OVER_EAGER),
    *(OVER_UNPRUNED, OVER_DECODE, OVER_ORACLE, SET_ASIDE),
)

MEASURED_ONLY = {"sdpa": OVER_SDPA, "eager": OVER_EAGER}
BASELINES = {"flash": OVER_FLASH, "vanilla": OVER_VANILLA, **MEASURED_ONLY, WITHOUT_ATTENTION: OVER_UNPRUNED}
"""The unpruned variants that others are compared with, `MEASURED_ONLY` where they are among the cases."""


def baselines(case: Case) -> dict[str, Metric]:
    """The unpruned variants that a case is compared with, and by which metric."""
    if case.model == OPERATORS:
        return {"decode": OVER_DECODE} if case.option("decode") else {"flash": OVER_FLASH}
    without = case.attention == WITHOUT_ATTENTION
    return {name: metric for name, metric in BASELINES.items() if (name == WITHOUT_ATTENTION) == without}


@dataclass
class Contender:
    """One case of a comparison on its way: its step, its samples, or why it fell out."""

    case: Case
    tokens: tuple[int, ...]
    step: Step | None = None
    kernel: str | None = None
    paths: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    output: Output | None = None
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


def references(contender: Contender, contenders: Sequence[Contender]) -> list[tuple[str, Contender]]:
    """What a contender is compared with, of those that ran: the unpruned by back end, the oracle at the same counts."""
    found = []
    for name in (*baselines(contender.case), "oracle"):
        for other in contenders:
            if other.step is not None and other is not contender and _is_reference(other.case, name, contender.case):
                found.append((name, other))
    return found


def _is_reference(other: Case, name: str, case: Case) -> bool:
    if other.execution != case.execution:
        return False
    if name != "oracle":
        return other.variant == name
    return other.pruning == name and other.attention == case.attention and other.schedule == case.schedule


def record(
    contender: Contender, contenders: list[Contender], rounds: Rounds, derive: Derive, precision: float
) -> Record:
    """What became of a contender, held against the others of its comparison."""
    if contender.failure is not None:
        return Record(
            contender.case, "failed", reason=contender.failure, tokens=contender.tokens, kernel=contender.kernel
        )
    assert contender.step is not None
    derived, words = derive(contender.step, contender.measurements, statistics.median(contender.medians))
    return Record(
        contender.case,
        "ok",
        tokens=contender.tokens,
        kernel=contender.kernel,
        paths=contender.paths,
        rounds=rounds.count,
        warmup=contender.warmup,
        stopped_by=rounds.stopped_by,
        unfit=cpu_state.unfit(rounds.readings),
        measurements=(
            *_timings(contender, contenders),
            *gpu_state.measurements(rounds.of_gpu),
            *cpu_state.measurements(rounds.readings),
            *contender.measurements,
            *derived,
        ),
        throttled=bool(contender.throttled) or gpu_state.throttled(rounds.of_gpu),
        output=contender.output,
        warnings=tuple(_warnings(contender, rounds, precision, words)),
    )


def _timings(contender: Contender, contenders: list[Contender]) -> Iterator[Measurement]:
    yield LATENCY.of(*contender.samples, per_round=contender.per_round)
    assert contender.step is not None
    yield THROUGHPUT.counting(contender.step.subject.units).of(
        *(1000 * contender.case.batch / ms for ms in contender.samples), per_round=contender.per_round
    )
    by_name = dict(references(contender, contenders))
    for name, metric in baselines(contender.case).items():
        if name in by_name:
            yield metric.of(*stats.paired_ratios(by_name[name].medians, contender.medians))
        elif name not in MEASURED_ONLY or any(_is_reference(c.case, name, contender.case) for c in contenders):
            own = contender.case.variant == name
            yield metric.missing(_why_unpaired(name, contender, contenders), reference=own)
    if "oracle" in by_name:
        yield OVER_ORACLE.of(*stats.paired_ratios(contender.medians, by_name["oracle"].medians))
    if contender.throttled:
        yield SET_ASIDE.of(*contender.throttled, per_round=contender.per_round)


def _why_unpaired(name: str, contender: Contender, contenders: list[Contender]) -> str:
    if contender.case.variant == name:
        return f"reference: this is {name} itself"
    if any(_is_reference(other.case, name, contender.case) for other in contenders):
        return f"{name} failed, so nothing can be compared with it"
    return f"no {name} in this run; add it to --variant"


def _warnings(contender: Contender, rounds: Rounds, precision: float, derived: Sequence[str]) -> Iterator[str]:
    """What puts the figures in doubt first, then what is to know of the model, then what more time would mend."""
    assert contender.step is not None
    yield from cpu_state.warnings(rounds.readings)
    yield from gpu_state.warnings(rounds.of_gpu)
    if rounds.count < LEAST_ROUNDS:
        yield f"{rounds.count} rounds give no interval, and no ratio is shown without: --rounds {LEAST_ROUNDS} or more"
    if not contender.steady:
        yield "warm-up did not settle; close other programs or raise --budget"
    yield from derived
    yield from contender.words
    yield from contender.step.subject.warnings
    if rounds.stopped_by == "budget":
        yield f"the time budget ended before ±{precision:.1%} was reached; --budget raises it"
    if count := stats.outliers(contender.medians):
        yield f"{count} of {rounds.count} rounds are outliers (kept); something else may be running here"
    if contender.throttled:
        causes = ", ".join(sorted(rounds.causes))
        count = len(contender.throttled) // contender.per_round
        yield f"{count} rounds under a hardware throttle were repeated ({causes})"
