"""Worker processes of this machine, seen from the command: started, listened to, and ended with all their children."""

from __future__ import annotations

import contextlib
import mmap
import os
import selectors
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from repshift_cli.benchmark import obituary, worker
from repshift_cli.benchmark.launchers import Death, Task
from repshift_cli.benchmark.pool import Hand
from repshift_cli.benchmark.worker import BUILDING, NOTHING, STATUS, Setup

SECONDS_FOR_THE_STACK = 1.0
LAST_WORDS = 5.0
"""Seconds that a process has to end in after it has shut its end of the link."""


@dataclass
class LocalCrew:
    """Workers on this machine; `setups` says what each place has to itself."""

    patience: float | None = None
    setups: tuple[Setup, ...] = (Setup(),)
    _told: bool = False
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _spare: dict[int, Worker] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._spare = {0: self._new(0)}  # it starts while the command is still reading

    def arrived(self) -> list[int]:
        """All places, at the first time."""
        told, self._told = self._told, True
        return [] if told else list(range(len(self.setups)))[::-1]

    def hire(self, place: int) -> Worker:
        """A new worker; the first has been starting since the crew was made."""
        return self._spare.pop(place, None) or self._new(place)

    def wait(self, seconds: float) -> list[Hand]:
        return [key.data for key, _ in self._selector.select(seconds)]

    def close(self) -> None:
        for spare in self._spare.values():
            spare.end()
        self._spare.clear()
        self._selector.close()

    def _new(self, place: int) -> Worker:
        return Worker(place, self.setups[place], self.patience, self._selector)


class Worker:
    """One process. Whatever happens to it becomes a message or a `Death`, and never an exception here."""

    def __init__(
        self,
        place: int,
        setup: Setup,
        patience: float | None,
        selector: selectors.BaseSelector,
    ) -> None:
        self.place, self._name = place, setup.place
        self.task: Task | None = None
        self.last: Task | None = None
        self._patience, self._selector = patience, selector
        self._began = self._moved = time.monotonic()
        self._step, self._peak = -1, 0
        self._ended = False
        self._deaf_since: float | None = None
        self._link, self._process, self._life = self._spawned(setup)
        self._killed_before = obituary.kills_for_memory()
        self._selector.register(self._link, selectors.EVENT_READ, self)

    def _spawned(self, setup: Setup) -> tuple[Connection, subprocess.Popen[bytes], int]:
        """The process, the way to it, and the pipe whose end tells it that this command is gone."""
        here, there = Pipe()
        self._stack, status = _scratch(), _scratch()
        os.ftruncate(status, STATUS.size)
        self._status = mmap.mmap(status, STATUS.size)
        STATUS.pack_into(self._status, 0, NOTHING, 0)
        life, mine = os.pipe()
        fds = (there.fileno(), status, self._stack, life)
        process = subprocess.Popen(
            worker.command(fds),
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            env={**os.environ, **dict(setup.environment)},
            start_new_session=True,
        )
        there.close()
        os.close(life)
        os.close(status)
        with contextlib.suppress(OSError):
            here.send(setup)
        return here, process, mine

    # --- what the pool asks for ---------------------------------------------------------------------------------------

    def give(self, task: Task) -> None:
        self.task, self._moved = task, time.monotonic()
        STATUS.pack_into(self._status, 0, NOTHING, 0)
        with contextlib.suppress(OSError):
            self._link.send(task)

    def messages(self) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = []
        if self._deaf_since is not None:
            return found
        try:
            while self._link.poll():
                message = self._link.recv()
                if message[0] == "ready":
                    found += [("spent", "starts", time.monotonic() - self._began), ("spent", "imports", message[1])]
                else:
                    found.append(message)
                self._moved = time.monotonic()
        except (EOFError, OSError):
            self._deaf_since = time.monotonic()
            self._selector.unregister(self._link)
        return found

    def death(self) -> Death | None:
        if self._hangs():
            reason = f"it hung: no step was finished in {self._patience:g} s (--case-timeout)"
            return Death(
                reason + self._while_building(), self._case(), self._stack_now(), again=False, place=self._name
            )
        if not self._is_over():
            if self._deaf_since is None or time.monotonic() - self._deaf_since < LAST_WORDS:
                return None
            why = "the process shut its way to the command and lives on"
            return Death(why, self._case(), self._stack_now(), place=self._name)
        case = self._case()
        code, peak = self._reaped()
        reason = obituary.reason(code, peak, obituary.kills_for_memory() > self._killed_before)
        why = reason + ("" if case else self._while_building())
        return Death(why, case, self._stack_so_far(), place=self._name)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._link.send(None)

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._deaf_since is None:
            self._selector.unregister(self._link)
        children = _descendants(self._process.pid) if self._process.returncode is None else []
        for process in children:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._reaped()
        self._link.close()
        os.close(self._life)
        os.close(self._stack)
        self._status.close()

    # --- how it is ----------------------------------------------------------------------------------------------------

    def _case(self) -> Any:
        """The running case of the task, None while its model is being built."""
        place = STATUS.unpack_from(self._status)[0]
        return self.task.subjects[place] if self.task and place >= 0 else None

    def _while_building(self) -> str:
        place = STATUS.unpack_from(self._status)[0]
        return " while the model was being built" if place == BUILDING else ""

    def _hangs(self) -> bool:
        step, now = STATUS.unpack_from(self._status)[1], time.monotonic()
        if step != self._step:
            self._step, self._moved = step, now
        return self._patience is not None and now - self._moved > self._patience

    def _is_over(self) -> bool:
        """Whether the process has ended, or has shut its end of the link and cannot answer any more."""
        if self._process.returncode is not None:
            return True
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return True

    def _reaped(self) -> tuple[int, int]:
        """The exit code, negative for a signal, and the most memory in bytes that the process ever held."""
        if self._process.returncode is None:
            with contextlib.suppress(ChildProcessError):
                _, status, usage = os.wait4(self._process.pid, 0)
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self._peak = usage.ru_maxrss * 1024
        return self._process.returncode or 0, self._peak

    def _stack_now(self) -> str | None:
        """The Python stack of a process that hangs, which faulthandler writes on a signal."""
        with contextlib.suppress(OSError):
            os.kill(self._process.pid, signal.SIGUSR1)
        until = time.monotonic() + SECONDS_FOR_THE_STACK
        while time.monotonic() < until and not self._stack_so_far():
            time.sleep(0.02)
        time.sleep(0.05)
        return self._stack_so_far()

    def _stack_so_far(self) -> str | None:
        return os.pread(self._stack, 100_000, 0).decode("utf-8", "replace").strip() or None


def _scratch() -> int:
    """A file without a name, by its descriptor."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("repshift")
    file, name = tempfile.mkstemp()
    os.unlink(name)
    return file


def _descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that these have, as Linux tells them."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_descendants(child)]
    return found
