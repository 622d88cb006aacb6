"""The sweep's engine: it plans, starts or resumes a run, has its comparisons measured, and stores each record at once.

It prints nothing and knows no terminal: whoever calls it gives the launcher and the observer.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from repshift_cli import __version__
from repshift_cli.benchmark.launchers import Arrival, Carrier, Death, Event, Listed, Observer, Task
from repshift_cli.benchmark.runner import Settings
from repshift_cli.benchmark.tasks import Comparison, Equipment, Equipping, Plan, Planning, Station
from repshift_cli.records import OPERATORS, Case, Record, Run, UsageError
from repshift_cli.records.journal import Journal
from repshift_cli.sweep import axes
from repshift_cli.sweep import plan as plans
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.operators import OperatorAxes
from repshift_cli.sweep.plan import Planned

PRECISION = {"cuda": 0.005, "cpu": 0.01}
BUDGET = {"cuda": 5.0, "cpu": 6.0}
NOTHING_MEASURED = 5
MOST_DEATHS = 2
"""A case that took as many processes with it is not tried again."""
MOST_LOSSES = 2
"""A comparison whose machine was lost is tried again elsewhere as often, at most."""
AGAIN = "its comparison was measured again elsewhere"
CRASHED = "crashed: repshift ended while this case was being measured"
ON_A_CPU = "measured on a CPU: there is no HBM, clock or GPU memory to measure"
CPU_FLASH = ", and `flash` is torch's CPU flash kernel"

Block = Sequence[Planned]
"""The cells of one comparison."""

Observing = Callable[[int], AbstractContextManager[Observer]]
"""Makes the observer of that many tasks."""


@dataclass(frozen=True)
class Manner:
    """How a sweep is measured, beside what it asks for: stored in the run file, so that `--resume` goes on alike."""

    timing_only: bool = False
    delay: float = 0.0
    memory_snapshot: str | None = None
    case_timeout: float | None = None

    def as_options(self) -> dict[str, Any]:
        """What is set, by name."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class Order:
    """What is asked for and how."""

    sweep: Axes | OperatorAxes
    manner: Manner = Manner()


@dataclass
class Session:
    """A run on its way: the file, what it holds, and what is still to do. `again` are failed cases to repeat."""

    journal: Journal
    planned: tuple[Planned, ...]
    settings: Settings
    station: Station
    again: frozenset[Case] = frozenset()
    done: set[Case] = field(default_factory=set)
    failed: set[Case] = field(default_factory=set)
    tokens: dict[Case, tuple[int, ...]] = field(default_factory=dict)
    unwritten: Case | None = None

    def __post_init__(self) -> None:
        for record in self.journal.records():
            self.done.add(record.case)
            if record.status == "failed":
                self.failed.add(record.case)
        self.done -= self.again
        self.tokens = {p.case: p.tokens for p in self.planned}

    def note(self, arrival: Arrival) -> None:
        """The machine of a place, in the run and on the disk."""
        if self.journal.run.machines.get(arrival.place) != arrival.machine:
            self.journal.add_machine(arrival.place, arrival.machine)

    def warn(self, text: str) -> None:
        """A warning of the whole run."""
        if text not in self.journal.run.warnings:
            self.journal.change(warnings=(*self.journal.run.warnings, text))

    def add(self, record: Record) -> None:
        """The record in the run and on the disk."""
        self.unwritten = record.case
        self.journal.add(record)
        self.unwritten = None
        self.done.add(record.case)
        (self.failed.add if record.status == "failed" else self.failed.discard)(record.case)

    def close(self) -> None:
        """Let go of the file; where it is whole, what did not fit into it before is in it now."""
        if self.journal.close() and self.unwritten is not None:
            self.done.add(self.unwritten)


# --- planning ---------------------------------------------------------------------------------------------------------


def plan_sweep(sweep: Axes | OperatorAxes, carrier: Carrier, observing: Observing) -> Plan:
    """The sweep's cells, `sweep.variant` being full names; UsageError where none can be planned.

    A model that takes the process with it is planned as failed, in another process.
    """
    died: dict[str, str] = {}
    while True:
        (event,) = carry_out([Planning(sweep, died)], carrier, observing)
        if not isinstance(event.value, Death):
            plan: Plan = event.value
            return plan
        died[event.value.case.model if event.value.case else ""] = event.value.reason
        if "" in died or died.keys() >= {case.model for case in event.task.subjects}:
            raise UsageError(f"this cannot be planned: {event.value.reason}")


def equip(order: Order, device: str, carrier: Carrier, observing: Observing) -> Equipment:
    """The machine as it is, and what measures HBM traffic on it."""
    equipment: Equipment = _asked(Equipping(device, hbm_of(order), order.sweep.threads), carrier, observing)
    return equipment


def hbm_of(order: Order) -> str:
    """How HBM traffic is to be measured; not at all where time alone is."""
    return "off" if order.manner.timing_only else order.sweep.hbm


def _asked(task: Task, carrier: Carrier, observing: Observing) -> Any:
    """The one result of a task."""
    (event,) = carry_out([task], carrier, observing)
    if isinstance(event.value, Death):
        raise UsageError(f"this cannot be planned: {event.value.reason}")
    return event.value


def settings_of(order: Order, device: str) -> Settings:
    """When to stop, with the device's defaults."""
    kind, sweep = device.partition(":")[0], order.sweep
    precision, budget = sweep.precision or PRECISION[kind], sweep.budget or BUDGET[kind]
    passes = not order.manner.timing_only
    return Settings(precision, budget, sweep.rounds, sweep.seed, passes, sweep.warmup)


def order_of(run: Run) -> Order:
    """What a stored run was asked for."""
    kept = {f.name for f in dataclasses.fields(Manner)}
    asked = {name: value for name, value in run.options.items() if name not in kept}
    manner = Manner(**{name: value for name, value in run.options.items() if name in kept})
    if any(case.model == OPERATORS for case in run.planned):
        return Order(OperatorAxes.from_options(asked), manner)
    known = axes.names()
    return Order(Axes.from_options({name: value for name, value in asked.items() if name in known}), manner)


# --- starting and resuming --------------------------------------------------------------------------------------------


def start(
    path: Path, order: Order, plan: Plan, equipment: Equipment, instead: Callable[[], Path] | None = None
) -> Session:
    """A new run file as it stands before the first case; its options hold the settings that really apply.

    Where there is such a file, `instead` names the next place to try; without it UsageError says what to do.
    """
    settings = settings_of(order, plan.device)
    sweep = dataclasses.replace(order.sweep, precision=settings.precision, budget=settings.budget)
    sweep = dataclasses.replace(sweep, threads=equipment.threads)
    run = Run(
        machine=equipment.machine,
        options=sweep.as_options() | order.manner.as_options(),
        planned=tuple(p.case for p in plan.planned),
        records=tuple(
            Record(p.case, "failed" if p.failed else "skipped", p.refused, p.tokens) for p in plan.planned if p.refused
        ),
        warnings=() if plan.device.startswith("cuda") else (_on_a_cpu(plan.planned),),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"repshift {__version__}",
        calibrations=equipment.choice.calibrations,
    )
    return Session(Journal.create(path, run, instead), plan.planned, settings, _station(order, plan, equipment))


def resume(
    journal: Journal, order: Order, plan: Plan, equipment: Equipment, retry_failed: bool, isolated: bool, named: bool
) -> Session:
    """The earlier run, where this machine and this version measure the same: UsageError otherwise. Records that are
    `named` say themselves where they were made, and may be of any machine.

    A case that was begun and never recorded has crashed where nothing stood between it and the command, or where that
    happened twice; a case that took two processes with it is not tried a third time.
    """
    here, earlier, path = equipment.machine, journal.run, journal.path
    for name in () if named else ("device_name", "uuid", "driver", "cpu"):
        if getattr(earlier.machine, name) != getattr(here, name):
            raise UsageError(f"{path} was begun on another machine ({name}: {getattr(earlier.machine, name)})")
    if earlier.machine.packages.get("torch") != here.packages.get("torch"):
        raise UsageError(f"{path} was begun with torch {earlier.machine.packages.get('torch')}; use that, or a new run")
    if tuple(p.case for p in plan.planned) != earlier.planned:
        raise UsageError(f"{path} has other cases than its options give now: the model or repshift changed; start anew")
    journal.run = dataclasses.replace(earlier, calibrations=equipment.choice.calibrations)
    again = frozenset(
        r.case for r in journal.records() if retry_failed and r.status == "failed" and r.deaths < MOST_DEATHS
    )
    settings = settings_of(order, plan.device)
    session = Session(journal, plan.planned, settings, _station(order, plan, equipment), again)
    for case, tokens in session.tokens.items():
        times = journal.unfinished.get(case.key, 0)
        if case not in session.done and (times >= MOST_DEATHS or (times and not isolated)):
            session.add(Record(case, "failed", CRASHED, tokens, deaths=times))
    return session


def _station(order: Order, plan: Plan, equipment: Equipment) -> Station:
    file = order.manner.memory_snapshot
    snapshots = snapshot_files(Path(file), plan.planned) if file else {}
    manner = order.manner
    return Station(
        plan.device, equipment.choice, manner.delay, snapshots, equipment.threads, passes=not manner.timing_only
    )


def _on_a_cpu(planned: Sequence[Planned]) -> str:
    return ON_A_CPU + CPU_FLASH * any(p.case.attention == "flash" for p in planned)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(session: Session, carrier: Carrier, observing: Observing) -> None:
    """Every comparison that is not yet in the run or has a case to measure again, each record on disk at once."""
    source = Comparisons(session)
    with observing(source.count) as observer:
        for event in carrier.carry_out(source, observer):
            if isinstance(event.value, Death):
                source.bury(event.task.subjects, event.value)
            elif isinstance(event.value, Arrival):
                session.note(event.value)
            else:
                session.add(event.value)


def carry_out(tasks: Sequence[Task], carrier: Carrier, observing: Observing) -> list[Event]:
    """What comes of these tasks."""
    with observing(len(tasks)) as observer:
        return list(carrier.carry_out(Listed(list(tasks)), observer))


class Comparisons:
    """The comparisons still to be measured, each made a task when a worker is free: what failed before is broken in it.

    A worker gets the next one with the model that it holds; else one of a model that nobody holds, so that few models
    are built twice; else it helps with the model that has most left.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._left: dict[tuple[Any, ...], deque[Block]] = {}
        self._deaths: Counter[tuple[Any, ...]] = Counter()
        self._lost: Counter[tuple[Case, ...]] = Counter()
        for block in plans.comparisons(session.planned):
            if any(p.case not in session.done for p in block):
                self._left.setdefault(block[0].case.group, deque()).append(block)
        self._unheld = deque(self._left)
        self.count = sum(map(len, self._left.values()))

    def take(self, near: Task | None) -> Comparison | None:
        """The next comparison with anything left to measure, noted in the run file as begun."""
        while self._left:
            group = self._next_group(near)
            block = self._left[group].popleft()
            if not self._left[group]:
                del self._left[group]
            wanted = frozenset(p.case for p in block) - self._session.done
            if wanted:
                self._session.journal.begin(sorted(wanted, key=lambda case: case.key))
                return self._comparison(block, wanted)
        return None

    def bury(self, cases: tuple[Case, ...], death: Death) -> None:
        """The case at which a process died has failed; the others of its comparison are measured without it.

        A model at whose building a process died twice is not built again. What was lost with its machine is tried
        elsewhere.
        """
        group = cases[0].group
        if death.elsewhere:
            self._lost[cases] += 1
            last = self._lost[cases] > MOST_LOSSES
            self._session.warn(f"{death.place}: {death.reason}" + ("" if last else f"; {AGAIN}"))
            if last:
                for case in (c for c in cases if c not in self._session.done):
                    self._fail(case, death)
        elif death.case is not None:
            self._fail(death.case, death)
        else:
            self._deaths[group] += 1
            if self._deaths[group] > 1 or not death.again:
                for case in (*cases, *(p.case for block in self._left.pop(group, ()) for p in block)):
                    self._fail(case, death)
        self._put_back(group, cases)

    def _next_group(self, near: Task | None) -> tuple[Any, ...]:
        if near is not None and near.subjects and near.subjects[0].group in self._left:
            return near.subjects[0].group
        while self._unheld:
            group = self._unheld.popleft()
            if group in self._left:
                return group
        return max(self._left, key=lambda group: len(self._left[group]))

    def _comparison(self, block: Block, wanted: frozenset[Case]) -> Comparison:
        session = self._session
        broken = frozenset(p.case for p in block if p.case in session.failed) - wanted
        cases = tuple((p.case, p.tokens) for p in block)
        return Comparison(session.station, session.settings, cases, wanted, broken)

    def _fail(self, case: Case, death: Death) -> None:
        """A row for a case that was still to be measured; one that was measured before is a reference no more."""
        session = self._session
        if case in session.done:
            session.failed.add(case)
            return
        earlier = session.journal.record_of(case)
        deaths = 1 + (earlier.deaths if earlier else 0)
        tokens = session.tokens[case]
        session.add(Record(case, "failed", death.reason, tokens, deaths=deaths, stack=death.stack, place=death.place))

    def _put_back(self, group: tuple[Any, ...], cases: tuple[Case, ...]) -> None:
        if any(case not in self._session.done for case in cases):
            block = [Planned(case, self._session.tokens[case]) for case in cases]
            self._left.setdefault(group, deque()).appendleft(block)


def exit_code(run: Run) -> int:
    """0 every planned case measured or refused, 1 one failed or is missing, 5 nothing measured."""
    statuses = {record.status for record in run.records}
    missing = {case.key for case in run.planned} - {record.case.key for record in run.records}
    return 1 if "failed" in statuses or missing else 0 if "ok" in statuses else NOTHING_MEASURED


def snapshot_files(file: Path, planned: Sequence[Planned]) -> Mapping[Case, Path]:
    """Where each case's allocations go: the file itself for one case, else numbered files beside it."""
    cases = [p.case for p in planned if not p.refused]
    if len(cases) == 1:
        return {cases[0]: file}
    return {c: file.with_name(f"{file.stem}-{n}-{c.variant}{file.suffix}") for n, c in enumerate(cases, 1)}
