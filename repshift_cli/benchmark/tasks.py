"""What a launcher carries: a comparison to measure, or a case to record, each with all that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from repshift_cli.benchmark import runner
from repshift_cli.benchmark.failures import PASSED_ON, ContextLost, failed, is_poison, reason_of
from repshift_cli.benchmark.launchers import Observer
from repshift_cli.benchmark.runner import Settings
from repshift_cli.counters.base.choice import Choice, choose
from repshift_cli.machine import device as devices
from repshift_cli.machine import turns
from repshift_cli.machine.cores import choose_threads, set_threads
from repshift_cli.machine.describe import describe
from repshift_cli.records import Case, Facts, Machine, Progress, Record, Unbuildable
from repshift_cli.records.profile import Breakdown

if TYPE_CHECKING:
    from repshift_cli.benchmark.builder import StepBuilder
    from repshift_cli.benchmark.guard import Guard
    from repshift_cli.profiling.chrome_trace import Recorded
    from repshift_cli.sweep.axes import Axes
    from repshift_cli.sweep.operators import OperatorAxes
    from repshift_cli.sweep.plan import FactsOf, Planned


@dataclass(frozen=True)
class Station:
    """Where and with what a process measures. `delay` makes every forward longer by that share (the gate's self-test).

    `snapshots` says which file takes the history of allocations of which case; `threads` is None where torch keeps its
    own number. Without `passes` nothing but time is measured, and no probe is made ready.
    """

    device: str
    choice: Choice | None = None
    delay: float = 0.0
    snapshots: Mapping[Case, Path] = field(default_factory=dict, hash=False)
    threads: int | None = None
    passes: bool = True


@lru_cache(maxsize=1)
def step_builder(station: Station) -> StepBuilder:
    """This process's builder of steps at the station: it keeps the built model from task to task."""
    from repshift_cli.benchmark import builder

    if station.threads is not None:
        set_threads(station.threads)
        guard().before["threads"] = station.threads
    snapshot = station.snapshots.__getitem__ if station.snapshots else None
    return builder.StepBuilder(station.device, station.delay, station.choice, snapshot, station.passes)


@lru_cache(maxsize=1)
def guard() -> Guard:
    """What this process was like before the first model."""
    from repshift_cli.benchmark.guard import Guard

    return Guard()


@lru_cache(maxsize=1)
def seat() -> turns.Seat:
    """This process's place among those that measure in turn."""
    return turns.seat()


def start_afresh() -> None:
    """Forget what earlier tasks have left in this process: the built model, and how the process was."""
    step_builder.cache_clear()
    guard.cache_clear()


@dataclass(frozen=True)
class Plan:
    """The cells of a sweep, and the device that they are for; the sweep has its batches found."""

    device: str
    planned: tuple[Planned, ...]
    sweep: Axes | OperatorAxes


@dataclass(frozen=True)
class Equipment:
    """The machine that measures, what measures HBM traffic on it, and the threads that torch computes with."""

    machine: Machine
    choice: Choice
    threads: int


@dataclass(frozen=True)
class Planning:
    """The cells of a sweep, worked out where they will be measured: a model may have to be built for its facts."""

    sweep: Axes | OperatorAxes
    died: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Models that took a process with them, with the reason: they are not tried again."""

    @property
    def subjects(self) -> tuple[Case, ...]:
        """A case for each model, by which it is known at which of them a process died."""
        named = self.sweep.model or ()
        models = dict.fromkeys((named,) if isinstance(named, str) else named)
        return tuple(Case(model, "random", "random", None, None, 1, "fp32", "cpu", "") for model in models)

    def perform(self, observer: Observer) -> Iterator[Plan]:
        """The plan."""
        from repshift_cli.benchmark import planning
        from repshift_cli.sweep.axes import Axes

        guard()
        device = devices.choose_device(self.sweep.device)
        observer.phase("planning")
        sweep = self.sweep
        if isinstance(sweep, Axes):
            sweep = planning.with_batches(sweep, device, observer.phase)
        planned = planning.plan_cases(sweep, device, partial(self._watched, observer))
        guard().settle()
        yield Plan(device, planned, sweep)

    def _watched(self, observer: Observer, facts_of: FactsOf) -> FactsOf:
        """The facts of a model, and nothing that asking for them changed in the process."""
        subjects = {case.model: case for case in self.subjects}

        def facts(model: str, *sizes: int | None) -> Facts:
            if model in self.died:
                raise Unbuildable(f"{model}: {self.died[model]} while it was planned")
            observer.at(subjects[model])
            try:
                return facts_of(model, *sizes)
            finally:
                guard().settle()

        return facts


@dataclass(frozen=True)
class Equipping:
    """The machine described, and the instrument of HBM traffic chosen, where it will measure."""

    device: str
    hbm: str
    threads: int | None
    subjects: tuple[Case, ...] = ()

    def perform(self, observer: Observer) -> Iterator[Equipment]:
        """The machine, and what measures HBM traffic on it, calibrated where it has to be."""
        device = devices.choose_device(self.device)
        threads = choose_threads(self.threads)
        machine = replace(describe(device), threads=threads)
        yield Equipment(machine, choose(self.hbm, device, observer.phase), threads)


@dataclass(frozen=True)
class Comparison:
    """Cases measured together, with their tokens; the records of the `wanted` ones are its results."""

    station: Station
    settings: Settings
    cases: tuple[tuple[Case, tuple[int, ...]], ...]
    wanted: frozenset[Case]
    broken: frozenset[Case] = frozenset()

    @property
    def subjects(self) -> tuple[Case, ...]:
        """Its cases, in order."""
        return tuple(case for case, _ in self.cases)

    def perform(self, observer: Observer) -> Iterator[Record]:
        """Build the model and compare; a model that cannot be built fails its cases, not the sweep."""
        first = self.cases[0][0]
        guarded, builder = guard(), step_builder(self.station)
        observer.at(None)
        observer.phase(f"building {first.model}")
        try:
            builder.subject(first)
        except PASSED_ON:
            raise
        except BaseException as error:
            if is_poison(error):
                raise ContextLost(None, reason_of(error)) from error
            yield from (failed(case, tokens, error) for case, tokens in self.cases if case in self.wanted)
            return
        builder.comparing(self.subjects)
        words = guarded.settle(first.seed)
        settle, inputs = partial(guarded.settle, first.seed), builder.inputs.put_back
        parts = replace(builder.parts, at=observer.at, settle=settle, inputs=inputs, turns=seat())
        for record in runner.compare(self.cases, set(self.wanted), parts, self.settings, observer.update, self.broken):
            yield replace(record, warnings=tuple(dict.fromkeys((*words, *record.warnings)))) if words else record


@dataclass(frozen=True)
class Recording:
    """One case recorded by torch's profiler into `path`; stacks and memory in passes of their own, beside it."""

    station: Station
    about: Breakdown
    steps: int
    path: Path
    stacks: bool = False
    memory: bool = False

    @property
    def subjects(self) -> tuple[Case, ...]:
        """Its one case."""
        return (self.about.case,) if self.about.case else ()

    def perform(self, observer: Observer) -> Iterator[tuple[Breakdown, Recorded | None]]:
        """The case's breakdown and its trace; one that fails gives the reason."""
        observer.at(self.about.case)
        observer.phase(f"{self.about.name}: building and warming up")
        try:
            found: tuple[Breakdown, Recorded | None] = self._recorded(observer)
        except PASSED_ON:
            raise
        except BaseException as error:
            found = replace(self.about, status="failed", reason=reason_of(error)), None
        yield found

    def _recorded(self, observer: Observer) -> tuple[Breakdown, Recorded]:
        from repshift_cli.profiling import digest, recorder

        assert self.about.case is not None
        builder = step_builder(self.station)
        step = builder.prepare(self.about.case)
        about = replace(self.about, kernel=builder.parts.verify(step))
        observer.update(Progress(f"{about.name}: recording", 0.5))
        recorder.record(step, self.path, self.steps)
        found = digest.digest(about, self.path)
        if self.stacks:
            recorder.record_stacks(step, self.path.with_suffix(".stacks"))
        if self.memory:
            recorder.record_memory(step, self.path.with_suffix(".pickle"))
        return found
