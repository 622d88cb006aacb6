"""What a launcher carries: a comparison to measure, or a case to record, each with all that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from repshift_cli.benchmark import runner
from repshift_cli.benchmark.launchers import Observer
from repshift_cli.benchmark.runner import Settings, reason_of
from repshift_cli.counters.base.choice import Choice
from repshift_cli.machine.cores import set_threads
from repshift_cli.records import Case, Progress, Record, UsageError
from repshift_cli.records.profile import Breakdown

if TYPE_CHECKING:
    from repshift_cli.benchmark.builder import StepBuilder
    from repshift_cli.profiling.chrome_trace import Recorded


@dataclass(frozen=True)
class Station:
    """Where and with what a process measures. `delay` makes every forward longer by that share (the gate's self-test).

    `snapshots` says which file takes the history of allocations of which case; `threads` is None where torch keeps its
    own number.
    """

    device: str
    choice: Choice | None = None
    delay: float = 0.0
    snapshots: Mapping[Case, Path] = field(default_factory=dict, hash=False)
    threads: int | None = None


@lru_cache(maxsize=1)
def step_builder(station: Station) -> StepBuilder:
    """This process's builder of steps at the station: it keeps the built model from task to task."""
    from repshift_cli.benchmark import builder

    if station.threads is not None:
        set_threads(station.threads)
    snapshot = station.snapshots.__getitem__ if station.snapshots else None
    return builder.StepBuilder(station.device, station.delay, station.choice, snapshot)


@dataclass(frozen=True)
class Comparison:
    """Cases measured together, with their tokens; the records of the `wanted` ones are its results."""

    station: Station
    settings: Settings
    cases: tuple[tuple[Case, tuple[int, ...]], ...]
    wanted: frozenset[Case]
    broken: frozenset[Case] = frozenset()

    def perform(self, observer: Observer) -> Iterator[Record]:
        """Build the model and compare; a model that cannot be built fails its cases, not the sweep."""
        builder = step_builder(self.station)
        observer.phase(f"building {self.cases[0][0].model}")
        try:
            builder.subject(self.cases[0][0])
        except UsageError:
            raise
        except Exception as error:
            yield from (runner.failed(case, tokens, error) for case, tokens in self.cases if case in self.wanted)
            return
        yield from runner.compare(
            self.cases, set(self.wanted), builder.parts, self.settings, observer.update, self.broken
        )


@dataclass(frozen=True)
class Recording:
    """One case recorded by torch's profiler into `path`; stacks and memory in passes of their own, beside it."""

    station: Station
    about: Breakdown
    steps: int
    path: Path
    stacks: bool = False
    memory: bool = False

    def perform(self, observer: Observer) -> Iterator[tuple[Breakdown, Recorded | None]]:
        """The case's breakdown and its trace; one that fails gives the reason."""
        observer.phase(f"{self.about.name}: building and warming up")
        try:
            yield self._recorded(observer)
        except UsageError:
            raise
        except Exception as error:
            yield replace(self.about, status="failed", reason=reason_of(error)), None

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
