"""The sweep's engine: it plans, starts or resumes a run, has its comparisons measured, and stores each record at once.

It prints nothing and knows no terminal: whoever calls it gives the launcher and the observer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from repshift_cli import __version__, registry
from repshift_cli.benchmark.launchers import Launcher, Observer, Task
from repshift_cli.benchmark.runner import Settings
from repshift_cli.benchmark.tasks import Comparison, Station
from repshift_cli.machine.describe import describe
from repshift_cli.records import WITHOUT_ATTENTION, Case, Machine, Record, Run, UsageError, store
from repshift_cli.sweep import axes, plan
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.operators import OperatorAxes
from repshift_cli.sweep.plan import Planned

PRECISION = {"cuda": 0.005, "cpu": 0.01}
BUDGET = {"cuda": 5.0, "cpu": 6.0}
NOTHING_MEASURED = 5
ON_A_CPU = "measured on a CPU: there is no HBM, clock or GPU memory to measure"
CPU_FLASH = ", and `flash` is torch's CPU flash kernel"

Observing = Callable[[int], AbstractContextManager[Observer]]
"""Makes the observer of that many tasks."""


@dataclass
class Session:
    """A run on its way: the file, what it holds, and what is still to do. `again` are failed cases to repeat."""

    path: Path
    run: Run
    planned: tuple[Planned, ...]
    settings: Settings
    station: Station
    again: frozenset[Case] = frozenset()
    done: set[Case] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.done = {record.case for record in self.run.records} - self.again

    def add(self, record: Record) -> None:
        """The record in the run and on the disk."""
        self.run = store.append(self.path, self.run, record)
        self.done.add(record.case)


# --- planning ---------------------------------------------------------------------------------------------------------


def plan_cases(sweep: Axes, device: str) -> tuple[Planned, ...]:
    """The sweep's cells, `sweep.variant` being full names."""
    from repshift_cli.benchmark import builder

    parts = [registry.find_variant(variant) for variant in sweep.variant]
    names = {WITHOUT_ATTENTION, *(backend.name for backend, _ in parts)}
    backends = {name: builder.backend_for(name, device) for name in names}
    methods = {method.name: registry.options_of(method) for _, method in parts if method}
    facts_of = partial(builder.facts_of, sweep.weights, data=sweep.data)
    planned = plan.expand(sweep, device, facts_of, backends, methods)
    if sweep.data is not None:
        for frames in dict.fromkeys(p.case.frames for p in planned if p.case.length is None):
            builder.check_data(sweep.data, frames)
    return planned


def settings_of(sweep: Axes | OperatorAxes, device: str, passes: bool) -> Settings:
    """When to stop, with the device's defaults."""
    kind = device.partition(":")[0]
    return Settings(sweep.precision or PRECISION[kind], sweep.budget or BUDGET[kind], sweep.rounds, sweep.seed, passes)


def sweep_of(run: Run) -> Axes:
    """The sweep that a stored run was made of."""
    known = axes.names()
    return Axes.from_options({name: value for name, value in run.options.items() if name in known})


# --- starting and resuming --------------------------------------------------------------------------------------------


def start(
    path: Path, sweep: Axes | OperatorAxes, planned: tuple[Planned, ...], settings: Settings, station: Station
) -> Session:
    """A new run file as it stands before the first case; its options hold the settings that really apply."""
    sweep = dataclasses.replace(sweep, precision=settings.precision, budget=settings.budget, threads=station.threads)
    run = Run(
        machine=_machine(station),
        options=sweep.as_options(),
        planned=tuple(p.case for p in planned),
        records=tuple(Record(p.case, "skipped", p.refused, p.tokens) for p in planned if p.refused),
        warnings=() if station.device.startswith("cuda") else (_on_a_cpu(planned),),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"repshift {__version__}",
        calibrations=station.choice.calibrations if station.choice else (),
    )
    store.create(path, run)
    return Session(path, run, planned, settings, station)


def resume(
    path: Path, earlier: Run, planned: tuple[Planned, ...], settings: Settings, station: Station, retry_failed: bool
) -> Session:
    """The earlier run, where this machine and this version measure the same: UsageError otherwise."""
    here = describe(station.device)
    for name in ("device_name", "uuid", "driver", "cpu"):
        if getattr(earlier.machine, name) != getattr(here, name):
            raise UsageError(f"{path} was begun on another machine ({name}: {getattr(earlier.machine, name)})")
    if earlier.machine.packages.get("torch") != here.packages.get("torch"):
        raise UsageError(f"{path} was begun with torch {earlier.machine.packages.get('torch')}; use that, or a new run")
    if tuple(p.case for p in planned) != earlier.planned:
        raise UsageError(f"{path} has other cases than its options give now: the model or repshift changed; start anew")
    calibrations = station.choice.calibrations if station.choice else ()
    run = dataclasses.replace(earlier, calibrations=calibrations)
    again = frozenset(r.case for r in run.records if retry_failed and r.status == "failed")
    return Session(path, run, planned, settings, station, again)


def _on_a_cpu(planned: tuple[Planned, ...]) -> str:
    return ON_A_CPU + CPU_FLASH * any(p.case.attention == "flash" for p in planned)


def _machine(station: Station) -> Machine:
    here = describe(station.device)
    return here if station.threads is None else dataclasses.replace(here, threads=station.threads)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(session: Session, launcher: Launcher, observing: Observing) -> Run:
    """Every comparison that is not yet in the run or has a case to measure again, each record on disk at once."""
    blocks = [b for b in plan.comparisons(session.planned) if any(p.case not in session.done for p in b)]
    for record in carry_out(_comparisons(session, blocks), len(blocks), launcher, observing):
        session.add(record)
    return session.run


def carry_out(tasks: Iterator[Task], count: int, launcher: Launcher, observing: Observing) -> Iterator[Any]:
    """The results of `count` tasks, each as it is made."""
    with observing(count) as observer:
        yield from launcher.launch(tasks, observer)


def _comparisons(session: Session, blocks: Sequence[Sequence[Planned]]) -> Iterator[Comparison]:
    """The tasks, each made when it is asked for: what failed before is broken in the next."""
    for block in blocks:
        wanted = frozenset(p.case for p in block) - session.done
        broken = _failed(session.run.records) - wanted
        cases = tuple((p.case, p.tokens) for p in block)
        yield Comparison(session.station, session.settings, cases, wanted, broken)


def _failed(records: Collection[Record]) -> frozenset[Case]:
    return frozenset(r.case for r in records if r.status == "failed")


def exit_code(run: Run) -> int:
    """0 measured, 1 at least one case failed, 5 nothing measured."""
    statuses = {record.status for record in run.records}
    return 1 if "failed" in statuses else 0 if "ok" in statuses else NOTHING_MEASURED


def snapshot_files(file: Path, planned: Sequence[Planned]) -> Mapping[Case, Path]:
    """Where each case's allocations go: the file itself for one case, else numbered files beside it."""
    cases = [p.case for p in planned if not p.refused]
    if len(cases) == 1:
        return {cases[0]: file}
    return {c: file.with_name(f"{file.stem}-{n}-{c.variant}{file.suffix}") for n, c in enumerate(cases, 1)}
