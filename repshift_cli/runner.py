"""Measuring one comparison: every case alone in its separate passes, then all of them interleaved in timed rounds.

Parts come as arguments (`Parts`), so that tests give a clock of their own and see exact numbers. Nothing here prints.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from repshift_cli import conditions, stats
from repshift_cli.records import WITHOUT_ATTENTION, Case, Measurement, Metric, Progress, Record, Step, UsageError

LATENCY = Metric("latency", "latency", "ms", "lower", "median", 12, "timed")
THROUGHPUT = Metric("throughput", "samples/s", "1/s", "higher", "median", 20, "timed")
OVER_FLASH = Metric("speedup_vs_flash", "vs flash", "x", "higher", "hodges-lehmann", 10, "timed")
OVER_VANILLA = Metric("speedup_vs_vanilla", "vs vanilla", "x", "higher", "hodges-lehmann", 11, "timed")
OVER_UNPRUNED = Metric("speedup_vs_unpruned", "vs unpruned", "x", "higher", "hodges-lehmann", 10, "timed")
OVER_ORACLE = Metric("time_vs_oracle", "time/oracle", "x", "lower", "hodges-lehmann", 18, "timed")
SET_ASIDE = Metric("latency_throttled", "throttled", "ms", "lower", "median", 120, "timed")

BASELINES = {"flash": OVER_FLASH, "vanilla": OVER_VANILLA, WITHOUT_ATTENTION: OVER_UNPRUNED}
"""The unpruned variants that others are compared with."""

LEAST_ROUNDS = 6
"""Fewer rounds give the median no 95% interval, so the budget never ends a comparison before."""

USUAL_ROUNDS = 10
"""Before this many rounds no precision is believed."""

MOST_RETRIES = 10
"""Rounds under a hardware throttle that are repeated, at most."""


Derived = tuple[Sequence[Measurement], Sequence[str]]


class Timer(Protocol):
    """A clock: milliseconds of each of `count` forwards."""

    source: str

    def time(self, forward: Callable[[], Any], count: int) -> list[float]: ...


class Probe(Protocol):
    """One quantity, measured in a pass of its own."""

    def measure(self, step: Step) -> tuple[Measurement, ...]: ...


@dataclass(frozen=True)
class Settings:
    """When to stop: `precision` is the half-width of every interval as a share, `budget` the seconds per case.

    `rounds`, where given, is the exact number of rounds and neither of the others ends them. Without `passes` nothing
    but time is measured, and attention is not verified.
    """

    precision: float
    budget: float
    rounds: int | None = None
    seed: int = 0
    passes: bool = True


@dataclass(frozen=True)
class Parts:
    """What the runner works with: `verify(step)` names the kernel that attention ran on or raises.

    `watch()` reads the device's state after a round (None where nothing answers), `before()` ahead of all rounds;
    `now()` is the host's clock in seconds. `derive` gives what follows from a step's measurements and its latency in
    milliseconds: more of them, and warnings. `look(step)` names the paths that pruning's kernels take, and what must be
    said of its scores.
    """

    prepare: Callable[[Case], Step]
    verify: Callable[[Step], str]
    probes: Callable[[Step], Sequence[Probe]]
    timer: Timer
    watch: Callable[[], Any] = lambda: None
    now: Callable[[], float] = time.perf_counter
    derive: Callable[[Step, Sequence[Measurement], float], Derived] = lambda *_: ((), ())
    before: Callable[[], Any] = lambda: None
    look: Callable[[Step], tuple[tuple[str, ...], tuple[str, ...]]] = lambda _: ((), ())


@dataclass
class _Lane:
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
class _Rounds:
    """How the timed rounds of a comparison went; `needed` is how many the precision asks for, as last looked at.

    A look takes milliseconds and is another chance to stop by luck, so the looks are a tenth apart.
    """

    count: int = 0
    needed: float = math.inf
    next_look: int = USUAL_ROUNDS
    stopped_by: str | None = None
    readings: list[Any] = field(default_factory=list)
    causes: set[str] = field(default_factory=set)


def compare(
    cases: Sequence[tuple[Case, tuple[int, ...]]],
    wanted: set[Case],
    parts: Parts,
    settings: Settings,
    observe: Callable[[Progress], None] = lambda _: None,
    broken: Collection[Case] = (),
) -> Iterator[Record]:
    """The records of the `wanted` ones of `cases` (with their tokens); the others are measured as references only.

    A case that fails (out of memory, an exception, NaN, the wrong kernel) gives a record with the reason, the others go
    on. A reference that failed in an earlier comparison is `broken`: it is not tried again and nothing is compared with
    it. UsageError and KeyboardInterrupt pass through.
    """
    lanes = [_Lane(case, tokens, failure="failed before" if case in broken else None) for case, tokens in cases]
    for i, lane in enumerate(lanes):
        if lane.failure is None:
            observe(Progress(f"{lane.case.variant}: passes", 0.3 * i / len(lanes)))
            _pass(lane, parts, lane.case in wanted, settings.passes)
    running = [lane for lane in lanes if lane.failure is None]
    rounds = _interleave(running, parts, settings, observe)
    for lane in lanes:
        if lane.case in wanted:
            yield _record(lane, lanes, rounds, parts, settings)


def failed(case: Case, tokens: tuple[int, ...], error: BaseException) -> Record:
    """The record of a case that was tried and failed."""
    return Record(case, "failed", reason=reason_of(error), tokens=tokens)


def reason_of(error: BaseException) -> str:
    """One line: out of memory in plain words, else the error's class and first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or "can't allocate memory" in text or "out of memory" in text.lower():
        return f"out of memory: {text}; try a smaller batch"
    return text if type(error).__module__.startswith("repshift_cli") else f"{type(error).__name__}: {text}"


# --- separate passes --------------------------------------------------------------------------------------------------


def _pass(lane: _Lane, parts: Parts, wanted: bool, passes: bool = True) -> None:
    """Make the case ready, verify its attention and, where its record is wanted, run every probe once.

    Without `passes` the case is made ready and no more.
    """
    try:
        lane.step = parts.prepare(lane.case)
        entering = lane.step.subject.tokens + lane.step.subject.protected
        if lane.tokens[0] != entering:
            raise RuntimeError(f"{lane.tokens[0]} tokens were planned and {entering} enter the first block")
        lane.measurements += lane.step.built
        if passes:
            lane.kernel = parts.verify(lane.step)
            lane.paths, lane.words = parts.look(lane.step)
        for probe in parts.probes(lane.step) if wanted and passes else ():
            lane.measurements += probe.measure(lane.step)
    except UsageError:
        raise
    except Exception as error:
        _drop(lane, error)


def _drop(lane: _Lane, error: BaseException) -> None:
    lane.failure, lane.step = reason_of(error), None


# --- timed rounds -----------------------------------------------------------------------------------------------------


def _interleave(lanes: list[_Lane], parts: Parts, settings: Settings, observe: Callable[[Progress], None]) -> _Rounds:
    """Warm every lane up, then rounds in a new random order each, until precise enough, out of time, or all done."""
    rounds, order, queue = _Rounds(), random.Random(settings.seed), list(lanes)
    for lane in lanes:
        observe(Progress(f"{lane.case.variant}: warm-up", 0.3))
        _guarded(lane, _warm_up, parts, settings)
    begun = parts.now()
    rounds.readings.append(parts.before())
    budget = settings.budget * len(lanes)
    retries = MOST_RETRIES
    with _no_garbage_collection():
        while rounds.stopped_by is None and any(lane.step for lane in lanes):
            order.shuffle(queue)
            for lane in queue:
                _guarded(lane, _time_one, parts)
            reading = parts.watch()
            if reading is not None and reading.hardware_throttled and retries:
                retries -= 1
                rounds.causes.update(reading.throttle)
                _set_aside(lanes)
                continue
            rounds.count += 1
            rounds.readings.append(reading)
            spent = parts.now() - begun
            rounds.stopped_by = _stop(lanes, rounds, spent, budget, settings)
            observe(_progress(lanes, rounds, spent, budget, settings))
    return rounds


def _guarded(lane: _Lane, work: Callable[..., None], *arguments: Any) -> None:
    if lane.step is None:
        return
    try:
        work(lane, *arguments)
    except UsageError:
        raise
    except Exception as error:
        _drop(lane, error)


def _warm_up(lane: _Lane, parts: Parts, settings: Settings) -> None:
    """Windows of forwards until two in a row agree, or a fifth of the case's budget is spent."""
    assert lane.step is not None
    windows: list[list[float]] = []
    begun = parts.now()
    with lane.step.active():
        first = parts.timer.time(lane.step.forward, 1)[0]
        size = _clamp(math.ceil(100 / max(first, 1e-3)), 2, 20)
        lane.warmup = 1
        while not (lane_steady := stats.steady(windows)):
            windows.append(parts.timer.time(lane.step.forward, size))
            lane.warmup += size
            if len(windows) > 1 and parts.now() - begun > settings.budget / 5:
                lane_steady = stats.steady(windows)
                break
    lane.steady = lane_steady
    lane.per_round = _clamp(math.ceil(20 / max(statistics.median(windows[-1]), 1e-3)), 1, 20)


def _time_one(lane: _Lane, parts: Parts) -> None:
    """One lane's share of a round; the first forward after a switch is not counted where forwards are short."""
    assert lane.step is not None
    with lane.step.active():
        if lane.per_round > 1:
            parts.timer.time(lane.step.forward, 1)
        samples = parts.timer.time(lane.step.forward, lane.per_round)
    lane.samples += samples
    lane.medians.append(statistics.median(samples))


def _set_aside(lanes: list[_Lane]) -> None:
    """Move the last round's samples out of the statistics; they stay in the record."""
    for lane in lanes:
        if lane.step is not None:
            lane.throttled += lane.samples[-lane.per_round :]
            del lane.samples[-lane.per_round :], lane.medians[-1]


def _stop(lanes: list[_Lane], rounds: _Rounds, spent: float, budget: float, settings: Settings) -> str | None:
    if settings.rounds is not None:
        return "rounds" if rounds.count >= settings.rounds else None
    if rounds.count >= rounds.next_look:
        rounds.needed = rounds.count * (_widest(lanes) / settings.precision) ** 2
        rounds.next_look = rounds.count + 1 + rounds.count // 10
        if rounds.needed <= rounds.count:
            return "precision"
    return "budget" if rounds.count >= LEAST_ROUNDS and spent >= budget else None


def _widest(lanes: list[_Lane]) -> float:
    """The largest relative half-width among the paired ratios; of the one latency where nothing is paired."""
    running = [lane for lane in lanes if lane.step is not None]
    widths = [
        stats.hodges_lehmann(stats.paired_ratios(reference.medians, lane.medians)).half_width
        for lane in running
        for _, reference in _references(lane, running)
    ] or [stats.median_interval(lane.medians).half_width for lane in running]
    return max((math.inf if w is None else w for w in widths), default=0.0)


def _progress(lanes: list[_Lane], rounds: _Rounds, spent: float, budget: float, settings: Settings) -> Progress:
    count, each = rounds.count, spent / rounds.count
    if settings.rounds is not None:
        left = (settings.rounds - count) * each
    else:
        left = max(0.0, min(budget - spent, max(rounds.needed - count, USUAL_ROUNDS - count) * each))
        left = max(left, (LEAST_ROUNDS - count) * each)
    return Progress("timing", 0.3 + 0.7 * spent / max(spent + left, 1e-9), left, _estimate(lanes))


def _estimate(lanes: list[_Lane]) -> str:
    """The live figure of the first pruned lane, or of the last one: its speed-up over a reference, or its latency."""
    running = [lane for lane in lanes if lane.step is not None and lane.samples]
    if not running:
        return ""
    shown = next((lane for lane in running if lane.case.layers), running[-1])
    for name, reference in _references(shown, running):
        ratio = statistics.median(stats.paired_ratios(reference.medians, shown.medians))
        return f"{shown.case.variant} {ratio:.2f}x vs {name}"
    return f"{shown.case.variant} {statistics.median(shown.medians):.1f} ms"


def _references(lane: _Lane, lanes: Sequence[_Lane]) -> list[tuple[str, _Lane]]:
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


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# --- from lanes to records --------------------------------------------------------------------------------------------


def _record(lane: _Lane, lanes: list[_Lane], rounds: _Rounds, parts: Parts, settings: Settings) -> Record:
    if lane.failure is not None:
        return Record(lane.case, "failed", reason=lane.failure, tokens=lane.tokens, kernel=lane.kernel)
    assert lane.step is not None
    derived, words = parts.derive(lane.step, lane.measurements, statistics.median(lane.medians))
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
            *conditions.measurements(rounds.readings),
            *lane.measurements,
            *derived,
        ),
        warnings=(*_warnings(lane, rounds, settings), *words),
    )


def _timings(lane: _Lane, lanes: list[_Lane]) -> Iterator[Measurement]:
    yield LATENCY.of(*lane.samples, per_round=lane.per_round)
    assert lane.step is not None
    units = Metric(**{**vars(THROUGHPUT), "label": f"{lane.step.subject.units}/s"})
    yield units.of(*(1000 * lane.case.batch / ms for ms in lane.samples), per_round=lane.per_round)
    by_name = dict(_references(lane, lanes))
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


def _why_unpaired(name: str, lane: _Lane, lanes: list[_Lane]) -> str:
    if lane.case.variant == name:
        return f"reference: this is {name} itself"
    if any(_is_reference(other.case, name, lane.case) for other in lanes):
        return f"{name} failed, so nothing can be compared with it"
    return f"no {name} in this run; add it to --variant"


def _warnings(lane: _Lane, rounds: _Rounds, settings: Settings) -> Iterator[str]:
    assert lane.step is not None
    yield from lane.step.subject.warnings
    yield from lane.words
    if not lane.steady:
        yield "warm-up did not settle; close other programs or raise --budget"
    if rounds.stopped_by == "budget":
        yield f"the time budget ended before ±{settings.precision:.1%} was reached; --budget raises it"
    if count := stats.outliers(lane.medians):
        yield f"{count} of {rounds.count} rounds are outliers (kept); something else may be running here"
    if lane.throttled:
        causes = ", ".join(sorted(rounds.causes))
        yield f"{len(lane.throttled) // lane.per_round} rounds under a hardware throttle were repeated ({causes})"
    yield from conditions.warnings(rounds.readings)
