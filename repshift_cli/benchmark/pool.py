"""Workers and what they are given to do: who is free takes the next task, who died is replaced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from repshift_cli.benchmark import signals
from repshift_cli.benchmark.launchers import Death, Event, Observer, Source, Spent, Task
from repshift_cli.benchmark.signals import Notice
from repshift_cli.records import Progress

SECONDS_BETWEEN_LOOKS = 0.5
GRACE = 15.0
"""Seconds that the running rounds get after the first Ctrl-C."""


class Hand(Protocol):
    """A worker as the pool sees it, with the task it has now and the one it had last."""

    place: int
    task: Task | None
    last: Task | None

    def give(self, task: Task) -> None:
        """Let it perform the task."""

    def messages(self) -> list[tuple[Any, ...]]:
        """What it has said since: `phase` and `update` for the observer, `spent` with a field of `Spent` and seconds,
        `result`s, then `done`, or `lost`.

        `done` comes with True where its process must not time anything more.
        """

    def death(self) -> Death | None:
        """Why it cannot go on, where it died or hangs."""

    def stop(self) -> None:
        """Ask it to end after the running round."""

    def end(self) -> None:
        """End it, with all its children."""


class Crew(Protocol):
    """Where workers come from."""

    def arrived(self) -> list[int]:
        """The places that can be given a task from now on, each told once; one that was lost is none."""

    def hire(self, place: int) -> Hand:
        """A new worker at the place."""

    def wait(self, seconds: float) -> list[Hand]:
        """Those who have something to say, within that time; UsageError where nobody is there or will come."""

    def close(self) -> None:
        """Nobody is needed any more."""


@dataclass
class Pool:
    """The launcher of all crews: one task at a time for each worker."""

    crew: Crew
    now: Callable[[], float] = time.monotonic
    isolated: bool = True
    named: bool = False
    spent: Spent = field(default_factory=Spent)
    _hands: dict[int, Hand] = field(default_factory=dict)
    _free: list[int] = field(default_factory=list)
    _busy: int = 0
    _shares: dict[int, float] = field(default_factory=dict)
    """By place, of the comparisons on their way."""
    _looked: float = 0.0

    def carry_out(self, source: Source, observer: Observer) -> Iterator[Event]:
        """Every task of the source, with its results as they are made."""
        with signals.noticed() as notice:
            stopped: float | None = None
            while True:
                self._free += self.crew.arrived()
                more = stopped is None and self._give_out(source)
                if not self._busy and not more:
                    break
                speaking = self.crew.wait(SECONDS_BETWEEN_LOOKS)
                for place in self._places_of(speaking):
                    yield from self._heard(place, observer, stopping=stopped is not None)
                notice.raise_at_once()
                stopped = self._stopping(notice, observer, stopped)
            if notice.interrupts:
                raise KeyboardInterrupt

    def close(self) -> None:
        """End every worker with its children."""
        with signals.undisturbed():
            for hand in self._hands.values():
                hand.end()
            self._hands.clear()
            self.crew.close()

    def _give_out(self, source: Source) -> bool:
        """A task for each free place; whoever had its model before gets the next with it. False where there is none."""
        while self._free:
            place = self._free[-1]
            hand = self._hands.get(place)
            task = source.take(hand.last if hand else None)
            if task is None:
                return False
            self._free.pop()
            if hand is None:
                hand = self._hands[place] = self.crew.hire(place)
            hand.give(task)
            self._busy += 1
        return True

    def _places_of(self, speaking: list[Hand]) -> list[int]:
        """The places of those who speak; from time to time all, since the dead do not speak."""
        if speaking and self.now() - self._looked < SECONDS_BETWEEN_LOOKS:
            return [hand.place for hand in speaking]
        self._looked = self.now()
        return [place for place, hand in self._hands.items() if hand.task is not None]

    def _heard(self, place: int, observer: Observer, stopping: bool) -> Iterator[Event]:
        """What the worker at a place has to say, its end included."""
        hand = self._hands[place]
        task = hand.task
        if task is None:
            return
        ended: Death | None = None
        for kind, *said in hand.messages():
            if kind == "result":
                yield Event(task, said[0])
            elif kind == "done":
                hand.task, hand.last = None, task
                if any(said):  # it has profiled a device, and what it timed from now on would be slower for that
                    hand.end()
                    del self._hands[place]
                self._free.append(place)
                self._busy -= 1
                self._shares.pop(place, None)
                observer.next()
                return
            elif kind == "lost":
                ended = Death(*said)
            elif kind == "refused":
                raise said[0]
            elif kind == "spent":
                getattr(self.spent, said[0]).append(said[1])
            elif kind == "update":
                observer.update(self._of_all(place, *said))
            else:
                getattr(observer, kind)(*said)
        if ended := ended or hand.death():
            hand.end()
            del self._hands[place]
            self._busy -= 1
            self._shares.pop(place, None)
            if not ended.elsewhere:
                self._free.append(place)
            if not stopping:
                yield Event(task, ended)

    def _of_all(self, place: int, word: Progress) -> Progress:
        """A worker's word as one of all: how far they have come together."""
        self._shares[place] = word.share
        if self._busy < 2:
            return word
        return replace(word, share=sum(self._shares.values()), seconds_left=None, workers=self._busy)

    def _stopping(self, notice: Notice, observer: Observer, since: float | None) -> float | None:
        """After the first Ctrl-C: since when the workers have been asked to stop."""
        if not notice.interrupts:
            return None
        if since is None:
            observer.phase("stopping after this round; Ctrl-C again stops at once")
            for hand in self._hands.values():
                hand.stop()
            return self.now()
        if self.now() - since > GRACE:
            raise KeyboardInterrupt
        return since
