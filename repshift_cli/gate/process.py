"""A fresh process of one side: started, ended with all its children, its run file read, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from repshift_cli.gate.verdict import NoBase, NothingMeasured
from repshift_cli.machine import guardian, turns
from repshift_cli.records import Run, UsageError, store

TIMEOUT = 3600.0
"""Seconds after which a measuring process is taken for hung."""

GRACE = 5.0
"""Seconds between asking a process to end and ending it."""

SECONDS_BETWEEN_LOOKS = 0.05
"""Between two looks at whether a process has ended."""

USAGE = 2


@dataclass(frozen=True)
class Side:
    """One side: its name, what it is in words, the tree, the folder to run in, the interpreter."""

    name: str
    words: str
    tree: Path
    folder: Path
    python: str
    environment: Mapping[str, str]
    extra: tuple[str, ...] = ()


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like an exception, so that what it holds is cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handled = [s for s in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if s is not None]
    before = {s: signal.signal(s, stop) for s in handled}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait while something is cleaned up: a second Ctrl-C does not leave half of it behind."""
    held = [s for s in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)) if s is not None]
    before = {s: signal.signal(s, signal.SIG_IGN) for s in held}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def started(
    command: Sequence[str] | str, folder: Path, environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose output goes to `log`; however the block ends, it and its children are gone.

    When this process is killed they go too: a guardian waits for the end of a pipe whose other end is here.
    """
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else command
    life, ours = os.pipe()
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-IS", guardian.__file__, str(life), *words],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(life,),
        )
        os.close(life)
        try:
            yield process
        finally:
            with undisturbed():
                _end(process)
                os.close(ours)


def run(command: Sequence[str] | str, folder: Path, environment: Mapping[str, str], log: Path) -> int:
    """The exit code of a command, when it has ended by itself; NothingMeasured where it does not."""
    with started(command, folder, environment, log) as process:
        try:
            return process.wait(TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise NothingMeasured(f"{_shown(command)} {_still_running()}") from error


def _still_running() -> str:
    return f"was still running after {TIMEOUT / 60:.0f} minutes"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process's whole group: asked first, then forced."""
    for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def _shown(command: Sequence[str] | str) -> str:
    return command if isinstance(command, str) else shlex.join(command)


@dataclass(frozen=True)
class Job:
    """A measuring process to be started: whose it is, its command, its run file."""

    side: Side
    command: tuple[str, ...]
    out: Path

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.out.with_suffix(".log")


@dataclass(frozen=True)
class Ended:
    """How a measuring process ended: its exit code (None where it hung), its run where it wrote one, its last line."""

    code: int | None
    run: Run | None
    said: str

    @property
    def refused(self) -> bool:
        """Whether it says that what is asked for cannot be used."""
        return self.code == USAGE and self.run is None

    @property
    def how(self) -> str:
        """In words: `signal 11 (Segmentation fault): it said nothing`."""
        if self.code is None:
            return self.said
        if self.code < 0:
            return f"signal {-self.code} ({signal.strsignal(-self.code)}): {self.said}"
        return f"exit code {self.code}: {self.said}"


@dataclass
class Starter:
    """Starts the measuring processes of one sweep; `folder` takes the run file and the log of each.

    `patience` is the seconds after which one step of a case counts as hung, where bench's own default is not wanted.
    """

    folder: Path
    options: dict[str, Any]
    patience: float | None = None
    command: str = "bench"
    """Of repshift: the one that the sweep's options belong to."""
    now: Callable[[], float] = time.monotonic
    seconds: list[float] = field(default_factory=list)
    """What each process took, or those that ran together; the first are the surveys."""
    turning: set[str] = field(default_factory=set)
    """The sides whose processes have come for their turns: older versions know of none."""
    notes: list[str] = field(default_factory=list)
    _help: dict[str, str] = field(default_factory=dict)

    def takes(self, side: Side, option: str) -> bool:
        """Whether the side's command has the option; none where it does not even print its help, as `notes` say.

        Whether such a side measures all the same is for its processes to show.
        """
        if side.name not in self._help:
            log = self.folder / f"{side.name}-help.log"
            command = [side.python, "-m", "repshift_cli", self.command, "--help"]
            code = run(command, side.folder, {**side.environment, "COLUMNS": "200", "NO_COLOR": "1"}, log)
            self._help[side.name] = "" if code else log.read_text(encoding="utf-8", errors="replace")
            if code:
                asked = f"`repshift {self.command} --help` fails on {side.name} ({last_line(log)})"
                self.notes.append(f"{asked}, so no option is used that only newer versions have")
        return option in self._help[side.name]

    def measure(self, side: Side, name: str, *arguments: str, **changes: Any) -> Ended:
        """One fresh process of the side, with these `changes` of the options."""
        (ended,) = self.together([self.job(side, name, *arguments, **changes)])
        return ended

    def job(self, side: Side, name: str, *arguments: str, **changes: Any) -> Job:
        """What such a process will be."""
        profile, out = self.folder / "profile.toml", self.folder / f"{name}.json"
        profile.write_text(toml({**self.options, **changes}, "what the gate measures"), encoding="utf-8")
        given = [*arguments, *side.extra]
        if self.patience is not None and self.takes(side, "--case-timeout"):
            given += ["--case-timeout", str(self.patience)]
        sweep = [self.command, "--profile", str(profile), "--out", str(out)]
        return Job(side, (side.python, "-m", "repshift_cli", *sweep, *given), out)

    def together(self, jobs: Sequence[Job]) -> list[Ended]:
        """Processes at the same time, each measuring in its turn; they are started in this order."""
        begun = self.now()
        codes, came = _carried_out(jobs)
        self.seconds.append(self.now() - begun)
        self.turning |= came
        return [_ended(job, codes[job.side.name]) for job in jobs]


def _carried_out(jobs: Sequence[Job]) -> tuple[dict[str, int | None], set[str]]:
    """By side, the exit code, None where it was still running after `TIMEOUT`; and which sides came for their turns."""
    until = time.monotonic() + TIMEOUT
    with contextlib.ExitStack() as stack:
        table = stack.enter_context(turns.table(job.side.name for job in jobs))
        processes = {}
        for job in jobs:
            environment = {**job.side.environment, **table.environment(job.side.name)}
            running = started(job.command, job.side.folder, environment, job.log)
            processes[job.side.name] = stack.enter_context(running)
        while living := {name for name, process in processes.items() if process.poll() is None}:
            table.attend(SECONDS_BETWEEN_LOOKS, living)
            if time.monotonic() > until:
                break
        return {name: process.poll() for name, process in processes.items()}, table.came


def _ended(job: Job, code: int | None) -> Ended:
    if code is None:
        return Ended(None, None, f"{_shown(job.command)} {_still_running()}")
    try:
        return Ended(code, store.load(job.out) if job.out.exists() else None, last_line(job.log))
    except UsageError as error:  # the run file of another version
        raise NoBase(f"no base: {job.side.name} wrote what this repshift cannot read: {error}") from error


def last_line(log: Path) -> str:
    """The last line that is not empty of what a process wrote."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def toml(options: Mapping[str, Any], title: str) -> str:
    """Options as a profile's text: JSON's strings, numbers, booleans and lists are TOML's too."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items() if value is not None]
    return "\n".join([f"title = {json.dumps(title)}", *lines]) + "\n"
