"""Ctrl-C, SIGTERM and SIGHUP while others measure: noticed, and answered where nothing is half done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

ENDING = tuple(s for s in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if s is not None)


@dataclass
class Notice:
    """What has arrived: how often Ctrl-C, and which signal asks the process to end."""

    interrupts: int = 0
    ended_by: int | None = None

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if number == signal.SIGINT:
            self.interrupts += 1
        else:
            self.ended_by = number

    def raise_at_once(self) -> None:
        """After SIGTERM or SIGHUP SystemExit with the shell's code of it; after a second Ctrl-C KeyboardInterrupt."""
        if self.ended_by is not None:
            raise SystemExit(128 + self.ended_by)
        if self.interrupts > 1:
            raise KeyboardInterrupt


@contextlib.contextmanager
def noticed(notice: Notice | None = None) -> Iterator[Notice]:
    """Within it these signals raise nothing by themselves; what has arrived stands in the notice."""
    notice = notice or Notice()
    with _handled((signal.SIGINT, *ENDING), notice.take):
        yield notice


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like an exception, so that what it holds is cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handled(ENDING, stop):
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals are dropped while something is cleaned up: a third Ctrl-C does not leave half of it behind."""
    with _handled((signal.SIGINT, *ENDING), signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled(numbers: tuple[int, ...], handler: object) -> Iterator[None]:
    """The handler in place; another thread than the main one gets no signals and needs none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, handler) for n in numbers}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for n, was in before.items():
            signal.signal(n, was)
