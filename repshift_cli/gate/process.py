"""A fresh process of one side: started, ended with all its children, its run file read, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from repshift_cli.gate.verdict import NothingMeasured
from repshift_cli.records import Run, store

TIMEOUT = 3600.0
"""Seconds after which a measuring process is taken for hung."""

GRACE = 5.0
"""Seconds between asking a process to end and ending it."""

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


def run(command: Sequence[str] | str, folder: Path, environment: Mapping[str, str], log: Path) -> int:
    """The exit code of a command whose output goes to `log`; however this ends, it and its children are gone."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise NothingMeasured(f"{_shown(command)} was still running after {TIMEOUT / 60:.0f} minutes") from error
        finally:
            with undisturbed():
                _end(process)


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


def bench(side: Side, arguments: Sequence[str], out: Path) -> tuple[int, Run | None]:
    """One fresh process that measures: its exit code and its run, where it wrote one. The log lies beside it."""
    command = [side.python, "-m", "repshift_cli", "bench", *arguments, "--out", str(out), *side.extra]
    code = run(command, side.folder, side.environment, out.with_suffix(".log"))
    return code, store.load(out) if out.exists() else None


def last_line(log: Path) -> str:
    """The last line that is not empty of what a process wrote."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def toml(options: Mapping[str, Any], title: str) -> str:
    """Options as a profile's text: JSON's strings, numbers, booleans and lists are TOML's too."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items() if value is not None]
    return "\n".join([f"title = {json.dumps(title)}", *lines]) + "\n"
