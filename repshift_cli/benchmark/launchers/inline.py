"""In this very process, one task after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from repshift_cli.benchmark.launchers import Observer, Task


def launch(tasks: Iterable[Task], observer: Observer) -> Iterator[Any]:
    """Perform each task here; whatever ends this process ends the sweep."""
    for task in tasks:
        yield from task.perform(observer)
        observer.next()
