"""The workers of a Ray cluster, seen from the command: an agent for every place, told what to do and listened to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from repshift_cli.benchmark.agent import Agent, Post
from repshift_cli.benchmark.launchers import Death, Task
from repshift_cli.benchmark.parcel import Parcel
from repshift_cli.benchmark.pool import Hand
from repshift_cli.benchmark.tasks import Comparison, Equipment, Equipping
from repshift_cli.records import UsageError

MOST_TRIES = 2
"""How often an agent is sent to a place where it does not arrive."""
LISTENING = 0.5
"""Seconds that an agent waits for something to say."""
WORDS_A_SECOND = 1000
"""What the command takes: with more places than half of it each is listened to for longer at a time."""


@dataclass
class Place:
    """One GPU of a machine, or the cores of one, with the agent there; `equipment` once it has arrived."""

    number: int
    post: Post
    node: str
    agent: Any
    arriving: Any
    needs: dict[str, float]
    tries: int = 1
    equipment: Equipment | None = None


@dataclass(frozen=True)
class Wanted:
    """What the agents are for: how long a step may take, what travels, how a machine is equipped, which device."""

    patience: float | None
    parcel: Parcel
    equipping: Equipping
    kind: str | None = None


class RayCrew:
    """Places that have arrived and are not lost. Whoever differs in torch's version, or has another device than the one
    wanted, is left out; `left_out` says why."""

    def __init__(self, posts: list[tuple[str, Post, dict[str, float]]], wanted: Wanted) -> None:
        self._wanted = wanted
        self._parcel = ray.put(wanted.parcel)
        self._places = {n: self._placed(n, *where) for n, where in enumerate(posts)}
        self._hands: dict[int, RayHand] = {}
        self._torch: str | None = None
        self._new: list[int] = []
        self.left_out: dict[str, str] = {}
        self.listening = max(LISTENING, len(posts) / WORDS_A_SECOND)

    def arrived(self) -> list[int]:
        """The places that can be given a task from now on."""
        arrived, self._new = self._new, []
        return arrived

    def hire(self, place: int) -> RayHand:
        """Who carries tasks to the place."""
        hand = self._hands[place] = RayHand(self, self._places[place], place)
        return hand

    def wait(self, seconds: float) -> list[Hand]:
        """Those who have something to say; places arrive meanwhile. UsageError where no place is left."""
        busy = {hand.hearing: hand for hand in self._hands.values() if hand.hearing is not None}
        coming = {place.arriving: place for place in self._places.values() if place.equipment is None}
        if not busy and not self._places:
            raise UsageError(f"no machine of the cluster can measure: {self._why_nobody()}")
        awaited = [*busy, *coming]
        if ray.wait(awaited, num_returns=1, timeout=seconds)[0]:
            for ref in ray.wait(awaited, num_returns=len(awaited), timeout=0)[0]:
                if ref in coming:
                    self._arrived(coming[ref])
                else:
                    busy[ref].ready = True
        speaking: list[Hand] = [hand for hand in busy.values() if hand.ready]
        return speaking

    def lose(self, place: Place, reason: str) -> None:
        """The place is no more."""
        self.left_out[place.post.place] = reason
        self._places.pop(place.number, None)
        self._hands.pop(place.number, None)
        ray.kill(place.agent)

    def close(self) -> None:
        for place in self._places.values():
            ray.kill(place.agent)
        self._places.clear()
        ray.shutdown()

    def _placed(self, number: int, node: str, post: Post, needs: dict[str, float], tries: int = 0) -> Place:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        made: Any = ray.remote(Agent).options(scheduling_strategy=there, max_restarts=0, **needs)
        agent: Any = made.remote(post, self._wanted.patience)
        arriving = agent.arrive.remote(self._parcel, self._wanted.equipping)
        return Place(number, post, node, agent, arriving, needs, tries + 1)

    def _arrived(self, place: Place) -> None:
        try:
            found: Equipment | Death = ray.get(place.arriving)
        except ray.exceptions.RayError as error:
            if place.tries < MOST_TRIES:
                self._places[place.number] = self._placed(
                    place.number, place.node, place.post, place.needs, place.tries
                )
                return
            found = Death(first_line(error))
        if isinstance(found, Death):
            self.lose(place, found.reason)
        elif reason := self._unwanted(found):
            self.lose(place, reason)
        else:
            place.equipment = found
            self._new.append(place.number)

    def _unwanted(self, found: Equipment) -> str | None:
        machine, kind = found.machine, self._wanted.kind
        if kind is not None and kind.casefold() not in machine.device_name.casefold():
            return f"its device is {machine.device_name}, and {kind} was asked for (--device-kind)"
        torch = machine.packages.get("torch")
        self._torch = self._torch or torch
        return None if torch == self._torch else f"it has torch {torch}, and the first machine has {self._torch}"

    def _why_nobody(self) -> str:
        return "; ".join(f"{place}: {reason}" for place, reason in self.left_out.items()) or "it has none that is free"


@dataclass
class RayHand:
    """The way to one place. What is lost with the machine says nothing of the case and is tried elsewhere."""

    crew: RayCrew
    at: Place
    place: int
    task: Task | None = None
    last: Task | None = None
    hearing: Any = None
    ready: bool = False
    _death: Death | None = None

    def give(self, task: Task) -> None:
        equipment, there = self.at.equipment, task
        if isinstance(task, Comparison) and equipment is not None:
            station = dataclasses.replace(task.station, choice=equipment.choice, threads=equipment.threads)
            there = dataclasses.replace(task, station=station)
        self.task, self._death = task, None
        self.hearing, self.ready = self.at.agent.give.remote(there, self.crew.listening), False

    def messages(self) -> list[tuple[Any, ...]]:
        if not self.ready:
            return []
        try:
            said = ray.get(self.hearing)
        except ray.exceptions.RayError as error:
            reason = f"the machine was lost, or the way to it ({first_line(error)})"
            self._death = Death(reason, elsewhere=True, place=self.at.post.place)
            self.hearing, self.ready = None, False
            self.crew.lose(self.at, self._death.reason)
            return []
        self.hearing, self.ready = None, False
        said = list(self._translated(said))
        if self._death is None and not any(kind == "done" for kind, *_ in said):
            self.hearing = self.at.agent.hear.remote(self.crew.listening)
        return said

    def death(self) -> Death | None:
        return self._death

    def stop(self) -> None:
        self.at.agent.stop.remote()

    def end(self) -> None:
        self.hearing = None
        self.at.agent.end.remote()

    def _translated(self, said: list[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
        for kind, *what in said:
            if kind == "died":
                self._death = what[0]
            else:
                yield (kind, *what)


def first_line(error: BaseException) -> str:
    """The first words of one of Ray's errors, without its listing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
