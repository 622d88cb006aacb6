"""How a task is carried to where it is measured: one launcher per file, found by the registry.

A launcher's module has `start(terms)`, which gives a `Carrier`; its name is the file's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from repshift_cli.records import Case, Machine, Progress


class Stopped(BaseException):
    """The command wants no more: the running round was the last."""


class Observer(Protocol):
    """Who is told how far the work is; a progress bar, or nobody."""

    def phase(self, text: str) -> None:
        """What is being done now."""

    def update(self, word: Progress) -> None:
        """A word from the runner, between timed regions."""

    def at(self, case: Case | None) -> None:
        """This case is being worked on from now; None where a model is being built."""

    def next(self) -> None:
        """One task is finished."""


class Task(Protocol):
    """What is measured in one piece, with everything needed to do so: picklable, so that it can be carried anywhere."""

    @property
    def subjects(self) -> tuple[Case, ...]:
        """The cases in it, those of one model and one input; of no case where it is no measurement."""

    def perform(self, observer: Observer) -> Iterator[Any]:
        """Do it, here, in this process, and give each result as it is made."""


class Source(Protocol):
    """Where tasks come from, each made when there is a place free for it."""

    def take(self, near: Task | None) -> Task | None:
        """The next task, best one that shares its model with `near`; None where there is none now."""


@dataclass(frozen=True)
class Death:
    """A task that could not be brought to its end: why, at which case (None: while building), the Python stack of it.

    `again` says whether it may go better in another process; `elsewhere`, that the machine was lost, or the way to it,
    which says nothing of the case. `place` is where it was.
    """

    reason: str
    case: Case | None = None
    stack: str | None = None
    again: bool = True
    elsewhere: bool = False
    place: str | None = None


@dataclass(frozen=True)
class Arrival:
    """Whose results name `place` were measured on this machine."""

    place: str
    machine: Machine


@dataclass(frozen=True)
class Event:
    """What a launcher reports: a result of a task, an `Arrival`, or the task's `Death`, after which nothing more comes
    of it."""

    task: Task
    value: Any


@dataclass(frozen=True)
class Terms:
    """What a launcher is asked for: `where` is its own argument (which GPUs, which cluster), `patience` the seconds
    that one step of a case may take before it counts as hung (None: any), `parallel` how many comparisons one machine
    may measure at once, `kind` part of the name of the devices to measure on.

    The rest is what a sweep says of the machines: the device, how HBM traffic is counted, the threads, the models, and
    whatever else may name a file.
    """

    where: str = ""
    patience: float | None = None
    parallel: int | None = None
    kind: str | None = None
    device: str = "auto"
    hbm: str = "off"
    threads: int | None = None
    models: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass
class Spent:
    """Seconds that went into something else than measuring: the start of each worker until it was ready, of that its
    imports, and what each comparison took to build its model, next to nothing where the worker held it already."""

    starts: list[float] = field(default_factory=list)
    imports: list[float] = field(default_factory=list)
    building: list[float] = field(default_factory=list)


class Carrier(Protocol):
    """A way to where measuring happens.

    `isolated` says whether a crash there leaves this process alone, `named` whether its records say where they were
    made; `spent` grows as it works.
    """

    isolated: bool
    named: bool
    spent: Spent

    def carry_out(self, source: Source, observer: Observer) -> Iterator[Event]:
        """Every task of the source, with its results as they are made."""

    def close(self) -> None:
        """End whatever was started."""


class Launcher(Protocol):
    """The contract of a launcher's file."""

    def start(self, terms: Terms) -> Carrier:
        """Begin, and give the way; UsageError where the terms cannot be met here."""


@dataclass
class Listed:
    """A source of tasks that are known from the start."""

    tasks: list[Task] = field(default_factory=list)

    def take(self, near: Task | None) -> Task | None:
        return self.tasks.pop(0) if self.tasks else None
