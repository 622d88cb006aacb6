"""How a task is carried to where it is measured: one launcher per file, found by the registry.

A launcher is a module with `launch`; its name is the file's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from repshift_cli.records import Progress


class Observer(Protocol):
    """Who is told how far the work is; a progress bar, or nobody."""

    def phase(self, text: str) -> None:
        """What is being done now."""

    def update(self, word: Progress) -> None:
        """A word from the runner, between timed regions."""

    def next(self) -> None:
        """One task is finished."""


class Task(Protocol):
    """What is measured in one piece, with everything needed to do so: picklable, so that it can be carried anywhere."""

    def perform(self, observer: Observer) -> Iterator[Any]:
        """Do it, here, in this process, and give each result as it is made."""


class Launcher(Protocol):
    """A way to where measuring happens."""

    def launch(self, tasks: Iterable[Task], observer: Observer) -> Iterator[Any]:
        """The results of the tasks, each as it is made; a task is taken only when there is a place free for it."""
