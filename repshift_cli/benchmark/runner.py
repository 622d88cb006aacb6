"""Measuring one comparison: memory, then all cases interleaved in timed rounds, then each alone in its other passes.

Time comes before every pass that looks at kernels: torch's profiler leaves CUPTI attached to the process, and what runs
afterwards may take 10 to 20% longer on the host (pytorch#146604). Memory comes before anything is captured: a graph
keeps a pool of its own. A case whose passes show that it did not run what it should fails, though it was timed.

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
from functools import partial
from typing import Any, Protocol

from repshift_cli.analysis import stats
from repshift_cli.benchmark.contenders import LEAST_ROUNDS, USUAL_ROUNDS, Contender, Derive, Rounds, record, references
from repshift_cli.benchmark.failures import PASSED_ON, CaptureFailed, ContextLost, is_poison, reason_of
from repshift_cli.records import Case, Measurement, Output, Progress, Record, Step

PREPARED = ("eager", "compile", "graph")
"""The executions in the order in which cases are made ready: what is captured comes last."""


MOST_RETRIES = 10
"""Rounds under a hardware throttle that are repeated, at most."""


Observe = Callable[[Progress], None]


class Timer(Protocol):
    """A clock: milliseconds of each of `count` forwards."""

    source: str

    def time(self, forward: Callable[[], Any], count: int) -> list[float]: ...


class Turns(Protocol):
    """When this process may use the machine, where others measure beside it."""

    def take(self, waiting: Callable[[], None]) -> bool:
        """Wait until it is this process's own, for a round; False where it always is."""

    def leave(self, waiting: Callable[[], None]) -> None:
        """Let the others have it, until they are through too."""


class Alone:
    """The turns of a process that shares the machine with no other."""

    def take(self, waiting: Callable[[], None]) -> bool:
        return False

    def leave(self, waiting: Callable[[], None]) -> None:
        pass


class Probe(Protocol):
    """One quantity, measured in a pass of its own."""

    def measure(self, step: Step) -> tuple[Measurement, ...]: ...


@dataclass(frozen=True)
class Settings:
    """When to stop: `precision` is the half-width of every interval as a share, `budget` the seconds per case.

    `rounds`, where given, is the exact number of rounds and neither of the others ends them; `warmup` that of untimed
    forwards. Without `passes` nothing but time is measured, and attention is not verified; that there is an output is
    looked at all the same.
    """

    precision: float
    budget: float
    rounds: int | None = None
    seed: int = 0
    passes: bool = True
    warmup: int | None = None


@dataclass(frozen=True)
class Parts:
    """What the runner works with: `verify(step)` names the kernel that attention ran on or raises.

    The probes `memory` measure before anything is captured or timed, `probes` when the timed rounds are over.
    `watch()` reads the device's state after a round (None where nothing answers), `before()` ahead of all rounds;
    `now()` is the host's clock in seconds. `derive` gives what follows from a step's measurements and its latency in
    milliseconds: more of them, and warnings. `look(step)` names the paths that pruning's kernels take, and what must be
    said of its scores; `output(step)` gives what the model puts out, or raises where that is nothing. `at(case)` is
    told, outside the timed regions, which case is worked on; `settle()` puts right what a case has changed in the
    process, and says what that was; `inputs(thorough)` the same of the inputs that all cases share. The warm-up and
    each round take one of the `turns`.
    """

    prepare: Callable[[Case], Step]
    verify: Callable[[Step], str]
    probes: Callable[[Step], Sequence[Probe]]
    timer: Timer
    watch: Callable[[], Any] = lambda: None
    now: Callable[[], float] = time.perf_counter
    derive: Derive = lambda *_: ((), ())
    before: Callable[[], Any] = lambda: None
    look: Callable[[Step], tuple[tuple[str, ...], tuple[str, ...]]] = lambda _: ((), ())
    output: Callable[[Step], Output | None] = lambda _: None
    memory: Callable[[Step], Sequence[Probe]] = lambda _: ()
    at: Callable[[Case], None] = lambda _: None
    settle: Callable[[], tuple[str, ...]] = lambda: ()
    inputs: Callable[[bool], tuple[str, ...]] = lambda thorough: ()
    turns: Turns = field(default_factory=Alone)


def compare(
    cases: Sequence[tuple[Case, tuple[int, ...]]],
    wanted: set[Case],
    parts: Parts,
    settings: Settings,
    observe: Observe = lambda _: None,
    broken: Collection[Case] = (),
) -> Iterator[Record]:
    """The records of the `wanted` ones of `cases` (with their tokens); the others are measured as references only.

    A case that fails (out of memory, an exception, NaN, the wrong kernel) gives a record with the reason, the others go
    on. A reference that failed in an earlier comparison is `broken`: it is not tried again and nothing is compared with
    it. KeyboardInterrupt passes through; ContextLost ends all.
    """
    contenders = [
        Contender(case, tokens, failure="failed before" if case in broken else None) for case, tokens in cases
    ]
    _prepare(contenders, parts, wanted, settings, observe)
    rounds = _interleave([contender for contender in contenders if contender.step], parts, settings, observe)
    running = [contender for contender in contenders if contender.step]
    for contender in running:
        _guarded(contender, _look_at_output, parts)
    if settings.passes:
        _passes(running, parts, wanted, observe)
    for contender in contenders:
        if contender.case in wanted:
            yield record(contender, contenders, rounds, parts.derive, settings.precision)


# --- making ready, and what is measured apart -------------------------------------------------------------------------

UNTIL_TIMED, TIMED = 0.2, 0.8
"""The shares of a comparison's progress at which the timing begins and ends."""


def _prepare(
    contenders: list[Contender], parts: Parts, wanted: set[Case], settings: Settings, observe: Observe
) -> None:
    """Make all of them ready, those that are captured last; memory is measured of each as soon as it is."""
    alive = [contender for contender in contenders if contender.failure is None]
    for i, contender in enumerate(sorted(alive, key=lambda c: PREPARED.index(c.case.execution))):
        observe(Progress(f"{contender.case.variant}: making ready", UNTIL_TIMED * i / len(alive)))
        _guarded(contender, _make_ready, parts, settings.passes and contender.case in wanted)


def _make_ready(contender: Contender, parts: Parts, measured: bool) -> None:
    step = parts.prepare(contender.case)
    entering = step.subject.tokens + step.subject.protected
    if contender.tokens[0] != entering:
        raise RuntimeError(f"{contender.tokens[0]} tokens were planned and {entering} enter the first block")
    contender.step = step
    contender.measurements += step.built
    for probe in parts.memory(step) if measured else ():
        contender.measurements += probe.measure(step)


def _passes(contenders: list[Contender], parts: Parts, wanted: set[Case], observe: Observe) -> None:
    """Verify every contender's attention and, where its record is wanted, run every probe once."""
    for i, contender in enumerate(contenders):
        observe(Progress(f"{contender.case.variant}: passes", TIMED + (1 - TIMED) * i / len(contenders)))
        _guarded(contender, _verify_and_probe, parts, contender.case in wanted)


def _look_at_output(contender: Contender, parts: Parts) -> None:
    assert contender.step is not None
    contender.output = parts.output(contender.step)


def _verify_and_probe(contender: Contender, parts: Parts, probed: bool) -> None:
    assert contender.step is not None
    contender.kernel = parts.verify(contender.step)
    contender.paths, words = parts.look(contender.step)
    contender.words += (*words, *parts.inputs(True))
    for probe in parts.probes(contender.step) if probed else ():
        contender.measurements += probe.measure(contender.step)
        contender.words += parts.inputs(True)


def _guarded(contender: Contender, work: Callable[..., None], parts: Parts, *arguments: Any) -> None:
    """The work on a contender that has not failed; what it raises fails the contender."""
    if contender.failure is not None:
        return
    parts.at(contender.case)
    try:
        work(contender, parts, *arguments)
    except PASSED_ON:
        raise
    except BaseException as error:
        _drop(contender, error)
    _settle(contender, parts, thorough=work is not _time_one)


def _settle(contender: Contender, parts: Parts, thorough: bool) -> None:
    """What this case has changed in the process and in its inputs is put back before the next one's turn."""
    contender.words = tuple(dict.fromkeys((*contender.words, *parts.settle(), *parts.inputs(thorough))))


def _drop(contender: Contender, error: BaseException) -> None:
    contender.failure, contender.step = reason_of(error), None
    if is_poison(error):
        lost = "" if isinstance(error, CaptureFailed) else "; it took the CUDA context with it"
        raise ContextLost(contender.case, contender.failure + lost) from error


# --- timed rounds -----------------------------------------------------------------------------------------------------


def _interleave(contenders: list[Contender], parts: Parts, settings: Settings, observe: Observe) -> Rounds:
    """Warm all of them up, then rounds in a new random order each, until precise enough, out of time, or all done."""
    rounds, order, queue = Rounds(), random.Random(settings.seed), list(contenders)
    waiting = partial(observe, Progress("waiting for its turn", UNTIL_TIMED))
    parts.turns.take(waiting)
    for contender in contenders:
        observe(Progress(f"{contender.case.variant}: warm-up", UNTIL_TIMED))
        _guarded(contender, _warm_up, parts, settings)
    begun = parts.now()
    rounds.readings.append(parts.before())
    budget = settings.budget * len(contenders)
    retries = MOST_RETRIES
    with _no_garbage_collection():
        while rounds.stopped_by is None and any(contender.step for contender in contenders):
            order.shuffle(queue)
            if parts.turns.take(waiting):
                rounds.readings += [None, parts.watch()]  # what lies before is another's time
            for contender in queue:
                _guarded(contender, _time_one, parts)
            reading = parts.watch()
            if reading is not None and reading.hardware_throttled and retries:
                retries -= 1
                rounds.causes.update(reading.throttle)
                _set_aside(contenders)
                continue
            rounds.count += 1
            rounds.readings.append(reading)
            spent = parts.now() - begun
            rounds.stopped_by = _stop(contenders, rounds, spent, budget, settings)
            observe(_progress(contenders, rounds, spent, budget, settings))
    parts.turns.leave(waiting)
    return rounds


def _warm_up(contender: Contender, parts: Parts, settings: Settings) -> None:
    """Windows of forwards until two in a row agree, or a fifth of the case's budget is spent; or as many as asked for.

    The very first forward loads, compiles and picks kernels, so neither the windows' size nor the budget goes by it.
    """
    assert contender.step is not None
    windows: list[list[float]] = []
    if settings.warmup is not None:
        with contender.step.active():
            times = parts.timer.time(contender.step.forward, settings.warmup)
        contender.warmup, contender.per_round = settings.warmup, _per_round(times[1:] or times)
        return
    with contender.step.active():
        parts.timer.time(contender.step.forward, 1)
        begun = parts.now()
        second = parts.timer.time(contender.step.forward, 1)[0]
        size = _clamp(math.ceil(100 / max(second, 1e-3)), 2, 20)
        contender.warmup = 2
        while not (steady := stats.steady(windows)):
            windows.append(parts.timer.time(contender.step.forward, size))
            contender.warmup += size
            if len(windows) > 1 and parts.now() - begun > settings.budget / 5:
                steady = stats.steady(windows)
                break
    contender.steady = steady
    contender.per_round = _per_round(windows[-1])


def _per_round(times: Sequence[float]) -> int:
    """How many forwards of so many milliseconds a round has: about 20 ms of them."""
    return _clamp(math.ceil(20 / max(statistics.median(times), 1e-3)), 1, 20)


def _time_one(contender: Contender, parts: Parts) -> None:
    """One contender's share of a round; the first forward after a switch is not counted where forwards are short.

    It is queued with the others, without a wait in between: behind a wait the device would be idle again, and the
    first that counts would begin on what the host has just launched.
    """
    assert contender.step is not None
    uncounted = 1 if contender.per_round > 1 else 0
    with contender.step.active():
        samples = parts.timer.time(contender.step.forward, uncounted + contender.per_round)[uncounted:]
    contender.samples += samples
    contender.medians.append(statistics.median(samples))


def _set_aside(contenders: list[Contender]) -> None:
    """Move the last round's samples out of the statistics; they stay in the record."""
    for contender in contenders:
        if contender.step is not None:
            contender.throttled += contender.samples[-contender.per_round :]
            del contender.samples[-contender.per_round :], contender.medians[-1]


def _stop(contenders: list[Contender], rounds: Rounds, spent: float, budget: float, settings: Settings) -> str | None:
    if settings.rounds is not None:
        return "rounds" if rounds.count >= settings.rounds else None
    if rounds.count >= rounds.next_look:
        rounds.needed = rounds.count * (_widest(contenders) / settings.precision) ** 2
        rounds.next_look = rounds.count + 1 + rounds.count // 10
        if rounds.needed <= rounds.count:
            return "precision"
    return "budget" if rounds.count >= LEAST_ROUNDS and spent >= budget else None


def _widest(contenders: list[Contender]) -> float:
    """The largest relative half-width among the paired ratios; of the one latency where nothing is paired."""
    running = [contender for contender in contenders if contender.step is not None]
    widths = [
        stats.hodges_lehmann(stats.paired_ratios(reference.medians, contender.medians)).half_width
        for contender in running
        for _, reference in references(contender, running)
    ] or [stats.median_interval(contender.medians).half_width for contender in running]
    return max((math.inf if w is None else w for w in widths), default=0.0)


def _progress(contenders: list[Contender], rounds: Rounds, spent: float, budget: float, settings: Settings) -> Progress:
    count, each = rounds.count, spent / rounds.count
    if settings.rounds is not None:
        left = (settings.rounds - count) * each
    else:
        left = max(0.0, min(budget - spent, max(rounds.needed - count, USUAL_ROUNDS - count) * each))
        left = max(left, (LEAST_ROUNDS - count) * each)
    share = UNTIL_TIMED + (TIMED - UNTIL_TIMED) * spent / max(spent + left, 1e-9)
    return Progress("timing", share, left, _estimate(contenders))


def _estimate(contenders: list[Contender]) -> str:
    """The live figure of the first pruned contender, or of the last: its speed-up over a reference, or its latency."""
    running = [contender for contender in contenders if contender.step is not None and contender.samples]
    if not running:
        return ""
    shown = next((contender for contender in running if contender.case.layers), running[-1])
    for name, reference in references(shown, running):
        ratio = statistics.median(stats.paired_ratios(reference.medians, shown.medians))
        return f"{shown.case.variant} {ratio:.2f}x vs {name}"
    return f"{shown.case.variant} {statistics.median(shown.medians):.1f} ms"


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
