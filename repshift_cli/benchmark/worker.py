"""The process that measures: it takes tasks from the command that started it, and sends each result as it is made.

It is started anew (spawned, never forked), in a session of its own. Its stdout is the command's stderr, so that what a
model prints mixes with nothing. It ends when the command ends, however that happens.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import signal
import struct
import sys
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from repshift_cli.benchmark.launchers import Stopped
from repshift_cli.machine.guardian import end_with

BUILDING, NOTHING = -1, -2
STATUS = struct.Struct("<iI")
"""What the worker writes where the command sees it at any time: the place of the running case among the task's, or
one of those above, and a number that changes with each step."""

SECONDS_BETWEEN_WORDS = 0.2


@dataclass
class Reporter:
    """The observer of a task: words go to the command, the running case stands where it outlives this process."""

    link: Connection
    status: mmap.mmap
    cases: tuple[Any, ...] = ()
    _count: int = 0
    _spoken: float = 0.0
    _building_since: float | None = None

    def phase(self, text: str) -> None:
        self.link.send(("phase", text))

    def update(self, word: Any) -> None:
        self._step()
        now = time.monotonic()
        if word.phase != "timing" or now - self._spoken >= SECONDS_BETWEEN_WORDS:
            self._spoken = now
            self.link.send(("update", word))
        if self.link.poll():  # the command has one thing to say while a task runs: stop
            raise Stopped

    def at(self, case: Any) -> None:
        place = self.cases.index(case) if case in self.cases else BUILDING
        if place == BUILDING:
            self._building_since = time.monotonic()
        elif self._building_since is not None:
            self.link.send(("spent", "building", time.monotonic() - self._building_since))
            self._building_since = None
        self._step(place)

    def next(self) -> None:
        """The command counts by itself."""

    @property
    def case(self) -> Any:
        """The running case, None where there is none."""
        place = STATUS.unpack_from(self.status)[0]
        return self.cases[place] if place >= 0 else None

    def begin(self, cases: tuple[Any, ...]) -> None:
        """A task with these cases starts; the last one is over."""
        self.cases, self._building_since = cases, None
        self._step(NOTHING)

    def _step(self, place: int | None = None) -> None:
        self._count += 1
        if place is None:
            place = STATUS.unpack_from(self.status)[0]
        STATUS.pack_into(self.status, 0, place, self._count % 2**32)


@dataclass(frozen=True)
class Setup:
    """What a worker has to itself: the name of its place, the cores that it may use, settings of its environment."""

    place: str | None = None
    cores: tuple[int, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def main(link_fd: int, status_fd: int, stack_fd: int, life_fd: int) -> None:
    """Answer tasks until there are none."""
    end_with(life_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(2, 1)
    faulthandler.enable(stack_fd)
    faulthandler.register(signal.SIGUSR1, file=stack_fd, all_threads=True)
    link = Connection(link_fd)
    reporter = Reporter(link, mmap.mmap(status_fd, STATUS.size))
    setup: Setup = link.recv()
    if setup.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, setup.cores)
    begun = time.monotonic()
    from repshift_cli.benchmark import builder  # noqa: F401  (the heavy imports, once)

    link.send(("ready", time.monotonic() - begun))
    with contextlib.suppress(EOFError, Stopped):
        while (task := link.recv()) is not None:
            reporter.begin(task.subjects)
            _answer(task, reporter, setup.place)
    link.close()
    os._exit(0)  # threads that a model left behind would keep the process alive


def _answer(task: Any, reporter: Reporter, place: str | None) -> None:
    from repshift_cli.benchmark.failures import ContextLost, reason_of
    from repshift_cli.benchmark.launchers import Arrival
    from repshift_cli.machine.describe import describe
    from repshift_cli.profiling import kineto
    from repshift_cli.records import Record, RepshiftError

    send, timed = reporter.link.send, False
    try:
        for value in task.perform(reporter):
            if isinstance(value, Record) and place and not timed:
                send(("result", Arrival(place, describe(value.case.device))))
            timed = isinstance(value, Record)
            send(("result", replace(value, place=place) if isinstance(value, Record) and place else value))
    except ContextLost as loss:
        send(("lost", loss.reason, loss.case, None, True, False, place))
    except RepshiftError as error:
        send(("refused", error))
    except (Stopped, ConnectionError):
        raise
    except BaseException as error:  # a KeyboardInterrupt too is the model's own: the user's does not reach this process
        send(("lost", reason_of(error), reporter.case, traceback.format_exc(), True, False, place))
    else:
        send(("done", timed and kineto.attached()))  # a fresh process for what is timed next


def command(fds: tuple[int, ...]) -> list[str]:
    """The command line of a worker, which finds this package where this process has found it."""
    code = f"import sys; sys.path[:] = {list(sys.path)!r}; from {__name__} import main; main{fds!r}"
    return [sys.executable, "-c", code]
