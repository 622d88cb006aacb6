"""In this very process, one task after another: for debugging, since whatever ends the process ends the sweep."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.benchmark.failures import ContextLost
from repshift_cli.benchmark.launchers import Death, Event, Observer, Source, Spent, Task, Terms
from repshift_cli.benchmark.tasks import start_afresh


def start(terms: Terms) -> Inline:
    """The launcher; it takes no terms."""
    start_afresh()
    return Inline()


@dataclass
class Inline:
    """Performs each task here."""

    isolated: bool = False
    named: bool = False
    spent: Spent = field(default_factory=Spent)

    def carry_out(self, source: Source, observer: Observer) -> Iterator[Event]:
        """Each task's results; a lost CUDA context ends a task as a process's death would."""
        task: Task | None = None
        while (task := source.take(task)) is not None:
            try:
                for value in _quietly(task.perform(observer)):
                    yield Event(task, value)
            except ContextLost as loss:
                yield Event(task, Death(loss.reason, loss.case))
            observer.next()

    def close(self) -> None:
        """Let go of the model."""
        start_afresh()


def _quietly(results: Iterator[Any]) -> Iterator[Any]:
    """The results; what is printed on the way to each goes to stderr, for stdout is the command's own."""
    end = object()
    while True:
        with prints_to_stderr():
            value = next(results, end)
        if value is end:
            return
        yield value


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Within it whatever writes to stdout, C code included, writes to stderr."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
