"""Processes that measure in turn: the machine is one's own for a round, while the others wait, ready to go on.

Whoever starts them has a `Table` with a place for each, whose address on this machine stands in their environment. A
word is one byte: `TURN`, the machine is wanted for a round, or `THROUGH` with what is compared now; the answer is `GO`.
Nobody goes before all that live have said a word, so that nobody builds a model beside another's rounds. Standard
library alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

VARIABLE = "REPSHIFT_TURNS"
"""Of the environment: `PORT:KEY`, the key being that of a process's own place."""
HERE = "127.0.0.1"
TURN, THROUGH, GO = b"t", b"x", b"g"
KEY = 16
"""Bytes of a key, the first that a process says."""
ORDERS = {
    2: ((0, 1), (1, 0)),
    3: ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)),
}
"""Who goes, pass after pass, of two or three: each comes as often behind each of the others, and of three nobody behind
oneself, for who has the machine twice running finds its caches warm. Of two both do."""
SECONDS_BETWEEN_SIGNS = 0.5
"""Between two signs of life of one that waits."""


# --- who measures -----------------------------------------------------------------------------------------------------


class Seat:
    """A measuring process's place; without a table, or when the table is gone, the machine is always its own."""

    def __init__(self, address: str = "") -> None:
        self._link: socket.socket | None = None
        port, _, key = address.partition(":")
        with contextlib.suppress(OSError, ValueError):
            self._link = socket.create_connection((HERE, int(port)), SECONDS_BETWEEN_SIGNS)
            self._link.sendall(bytes.fromhex(key))

    def take(self, waiting: Callable[[], None]) -> bool:
        """Wait for a turn, which lasts until the next word, calling `waiting` meanwhile; False without a table."""
        return self._ask(TURN, waiting)

    def leave(self, waiting: Callable[[], None]) -> None:
        """Give the machine back, and wait until all are through."""
        self._ask(THROUGH, waiting)

    def _ask(self, word: bytes, waiting: Callable[[], None]) -> bool:
        if self._link is None:
            return False
        with contextlib.suppress(ConnectionError):
            self._link.sendall(word)
            if _answer(self._link, waiting):
                return True
        self._link.close()
        self._link = None
        return False


def _answer(link: socket.socket, waiting: Callable[[], None]) -> bytes:
    while True:
        try:
            return link.recv(1)
        except TimeoutError:
            waiting()


def seat() -> Seat:
    """This process's place, as its environment says."""
    return Seat(os.environ.get(VARIABLE, ""))


# --- who starts them --------------------------------------------------------------------------------------------------


@dataclass
class _Place:
    """One at the table, with the last word that had no answer yet."""

    name: str
    key: bytes
    link: socket.socket | None = None
    word: bytes = b""
    came: bool = False


class Table:
    """Gives the turns to two or three, each once in a pass, in the order of `ORDERS`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._places = [_Place(name, secrets.token_bytes(KEY)) for name in names]
        self._due: list[str] = []
        self._passes = 0
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((HERE, 0))
        self._selector.register(self._listener, selectors.EVENT_READ)

    def environment(self, name: str) -> dict[str, str]:
        """What leads a process to its place."""
        port = self._listener.getsockname()[1]
        return {VARIABLE: f"{port}:{next(p.key for p in self._places if p.name == name).hex()}"}

    @property
    def came(self) -> set[str]:
        """Who has taken a place."""
        return {place.name for place in self._places if place.came}

    def attend(self, seconds: float, living: Collection[str]) -> None:
        """Listen for so long at most, and let go who may; those that do not live any more are not waited for."""
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._receive()
            elif key.fileobj is key.data.link:
                self._hear(key.data)
        there = [place for place in self._places if place.name in living]
        if not there or not all(place.word for place in there):
            return
        wanting = [place for place in there if place.word == TURN]
        for place in [self._next(wanting)] if wanting else there:
            place.word = b""
            with contextlib.suppress(OSError):
                assert place.link is not None
                place.link.sendall(GO)

    def close(self) -> None:
        """Whoever still sits there goes on without turns."""
        for place in self._places:
            self._clear(place)
        self._listener.close()
        self._selector.close()

    def _receive(self) -> None:
        """A process sits down; one that died there before has left the place to it."""
        link, _ = self._listener.accept()
        link.settimeout(SECONDS_BETWEEN_SIGNS)
        said = b""
        with contextlib.suppress(OSError):
            said = link.recv(KEY, socket.MSG_WAITALL)
        place = next((p for p in self._places if secrets.compare_digest(p.key, said)), None)
        if place is None:
            link.close()
            return
        self._clear(place)
        place.link, place.came = link, True
        self._selector.register(link, selectors.EVENT_READ, place)

    def _hear(self, place: _Place) -> None:
        assert place.link is not None
        said = b""
        with contextlib.suppress(OSError):
            said = place.link.recv(1)
        if said:
            place.word = said
        else:
            self._clear(place)

    def _clear(self, place: _Place) -> None:
        if place.link is not None:
            self._selector.unregister(place.link)
            place.link.close()
        place.link, place.word = None, b""

    def _next(self, wanting: list[_Place]) -> _Place:
        """Who of these is due: each once in every pass."""
        by_name = {place.name: place for place in wanting}
        if not any(name in by_name for name in self._due):
            orders = ORDERS.get(len(self._places), (range(len(self._places)),))
            self._due = [self._places[n].name for n in orders[self._passes % len(orders)]]
            self._passes += 1
        first = next(name for name in self._due if name in by_name)
        self._due.remove(first)
        return by_name[first]


@contextlib.contextmanager
def table(names: Iterable[str]) -> Iterator[Table]:
    """A table for these, closed afterwards."""
    with contextlib.closing(Table(names)) as made:
        yield made
