"""Instruments that count HBM traffic, one file each, and what an instrument is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from repshift_cli.counters.base.traffic import Traffic


class Instrument(Protocol):
    """An instrument: a file of this room. It counts in a child process, and its answer is read here."""

    LABEL: str
    """What its figures are: `counter` (counted) or `sampled` (a rate over seconds)."""

    RANK: int
    """Its place among those that `--hbm auto` tries, a literal; the lowest goes first."""

    def unavailable(self, device: str) -> str | None:
        """Why it cannot count here, as far as that can be told without trying, or None."""

    def identity(self) -> str:
        """Which version of it counts: another one is calibrated anew."""

    def command(self, worker: Sequence[str], folder: Path) -> list[str]:
        """The child's command line, under another program where that one counts."""

    def collect(self, counted: Any, folder: Path, ranges: int) -> list[Traffic]:
        """The bytes of each range, from what the child answered or from a log in `folder`; or CounterError."""

    def counting(self, device: str) -> AbstractContextManager[Callable[[Callable[[], Any]], Any]]:
        """In the child: a function that runs some work within a range; what it gives is JSON, the child's answer."""
