"""A child process that counts, and its end turned into an answer or one reason.

The request and the answer are JSON in two files, so that nothing a library prints can get in between, and so that ncu
can run the same child again. Nothing that the child does, crashing and hanging included, costs more than the one cell.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from repshift_cli.counters.base.traffic import CounterError

LIMIT = 300.0
"""Seconds after which a child is ended: importing, building a model and counting take a tenth of that."""

WORKER = "repshift_cli.benchmark.counter_worker"
REQUEST, ANSWER, LOG = "request.json", "answer.json", "log.txt"


def ask(
    request: dict[str, Any],
    folder: Path,
    wrapped: Callable[[list[str]], list[str]] = list,
    limit: float = LIMIT,
) -> Any:
    """What the child answers, from files in `folder`; CounterError with the reason where it gives no answer.

    `wrapped` puts another program (ncu) in front of the child's command line.
    """
    (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
    worker = [sys.executable, "-m", WORKER, str(folder / REQUEST), str(folder / ANSWER)]
    code = _run(wrapped(worker), folder / LOG, limit)
    return _answer(folder, code)


def _run(command: list[str], log: Path, limit: float) -> int:
    """The exit code of the command, which has a process group of its own that ends with it."""
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            raise CounterError(f"{command[0]} does not start: {error.strerror or error}") from error
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired as error:
        raise CounterError(f"the child did not answer within {limit:g} s and was ended") from error
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment() -> dict[str, str]:
    """This process's, with this package on the child's path and numbers printed without a locale's signs."""
    here = str(Path(__file__).resolve().parent.parent.parent.parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "LC_ALL": "C.UTF-8"}


def _answer(folder: Path, code: int) -> Any:
    try:
        text = (folder / ANSWER).read_text(encoding="utf-8", errors="replace")
    except OSError:
        _no_answer(folder, code)
    try:
        answer = json.loads(text)
    except ValueError as error:
        raise CounterError(f"the child answered garbage: {text[:60]!r}") from error
    if not isinstance(answer, dict) or not answer.keys() & {"counted", "error"}:
        raise CounterError(f"the child answered garbage: {text[:60]!r}")
    if "error" in answer:
        raise CounterError(str(answer["error"]))
    return answer["counted"]


def _no_answer(folder: Path, code: int) -> NoReturn:
    """CounterError with how the child ended and the last line that it or ncu printed."""
    how = f"ended with code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"crashed ({signal.Signals(-code).name})"
    lines = (folder / LOG).read_text(encoding="utf-8", errors="replace")[-4000:].split("\n")
    last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    raise CounterError(f"the child {how}" + (f": {last[:200]}" if last else ""))
