"""What stands for the command on a machine of a cluster: it keeps the worker process there, and what this has said."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from repshift_cli.benchmark.launchers import Death, Task
from repshift_cli.benchmark.parcel import Parcel
from repshift_cli.benchmark.tasks import Equipment, Equipping
from repshift_cli.benchmark.worker import Setup
from repshift_cli.benchmark.workers import LocalCrew, Worker
from repshift_cli.records import UsageError


@dataclass(frozen=True)
class Post:
    """A place on a machine: its name, and which share of the machine's cores it has, `share` of `shares`."""

    place: str
    share: int
    shares: int


class Agent:
    """One place of a cluster. Its worker outlives no task that killed it, the agent does."""

    def __init__(self, post: Post, patience: float | None) -> None:
        self._post, self._patience = post, patience
        self._crew: LocalCrew | None = None
        self._hand: Worker | None = None

    def arrive(self, parcel: Parcel, equipping: Equipping) -> Equipment | Death:
        """Unpack, start the worker, and find out what there is here; the worker keeps its imports."""
        try:
            parcel.open()
            cores = share_of_cores(self._post.share, self._post.shares)
        except UsageError as error:
            return Death(str(error))
        self._crew = LocalCrew(self._patience, (Setup(self._post.place, cores),))
        said_first = self.give(equipping, 0.0)
        while True:
            for kind, *said in said_first or self.hear(60.0):
                if kind in ("died", "refused"):
                    return said[0] if kind == "died" else Death(str(said[0]))
                if kind == "result":
                    equipment: Equipment = said[0]
                elif kind == "done":
                    return equipment

    def give(self, task: Task, seconds: float) -> list[tuple[Any, ...]]:
        """Let the worker perform the task, a fresh one where the last has died; then as `hear`."""
        assert self._crew is not None
        if self._hand is None:
            self._hand = self._crew.hire(0)
        self._hand.give(task)
        return self.hear(seconds)

    def hear(self, seconds: float) -> list[tuple[Any, ...]]:
        """What the worker has said, as soon as there is more than progress, within that time.

        After `done`, or `died` with the `Death`, the task is over.
        """
        assert self._crew is not None
        until, words = time.monotonic() + seconds, list[tuple[Any, ...]]()
        while self._hand is not None and time.monotonic() < until and not any(w[0] in NEWS for w in words):
            self._crew.wait(min(0.5, max(until - time.monotonic(), 0.0)))
            words += self._said(self._hand)
        return list(_newest(words))

    def stop(self) -> None:
        """Ask the worker to end after the running round."""
        if self._hand is not None:
            self._hand.stop()

    def end(self) -> None:
        """End the worker, with all its children."""
        if self._hand is not None:
            self._hand.end()
            self._hand = None

    def _said(self, hand: Worker) -> Iterator[tuple[Any, ...]]:
        for kind, *said in hand.messages():
            if kind == "done" and any(said):
                self.end()
            yield (kind,) if kind == "done" else ("died", Death(*said)) if kind == "lost" else (kind, *said)
            if kind in ("done", "lost"):
                hand.task, hand.last = None, hand.task
                if kind == "lost":
                    self.end()
                return
        if death := hand.death():
            self.end()
            yield "died", death


NEWS = ("result", "done", "died", "refused")
"""What the command must hear at once."""
PROGRESS = ("phase", "update")
"""Of what the newest is enough."""


def _newest(words: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The words without those of progress that others have overtaken."""
    last = max((i for i, word in enumerate(words) if word[0] in PROGRESS), default=None)
    return (word for i, word in enumerate(words) if word[0] not in PROGRESS or i == last)


def share_of_cores(share: int, shares: int) -> tuple[int, ...]:
    """Cores of this machine for one of several that compute at once; UsageError where there are too few.

    Cores are never shared: two that compute on one disturb each other's times.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if shares > len(cores):
        raise UsageError(f"{shares} comparisons at once need as many cores, and there are {len(cores)}; name fewer")
    if shares == 1:
        return ()
    each = len(cores) // shares
    return tuple(cores[share * each : (share + 1) * each])
