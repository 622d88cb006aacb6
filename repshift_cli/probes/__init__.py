"""One file per quantity, measured in a pass of its own and found by the registry: what a probe offers and is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from repshift_cli.records import Case, Measurement, Metric, Step, Subject

BEFORE_TIMING = ("memory",)
"""What is measured before anything is captured or timed; all other passes come when the timed rounds are over."""
ORDER = (*BEFORE_TIMING, "fidelity", "macs", "kv_cache", "launches", "hbm", "energy", "snapshot")
"""The order of the passes; probes that do not stand here come after these, by their names."""


@dataclass(frozen=True)
class Counter:
    """The run's instrument of HBM traffic: `count(case)` gives objects with total, read and written bytes.

    Without an instrument, `reason` says why. `errors` are what `count` raises where one case cannot be counted.
    """

    instrument: str | None
    reason: str
    label: str = "counter"
    count: Callable[[Any], Sequence[Any]] = lambda _: ()
    errors: tuple[type[Exception], ...] = ()
    modelled: bool = True


NOT_ASKED = Counter(None, "not asked for")


@dataclass(frozen=True)
class Context:
    """What probes need from outside: the model as its library runs it, and the instruments of this run.

    `process_bytes()` is what the driver (on a CPU the kernel) counts for this process, `card_bytes()` for the whole
    card, `millijoules()` the card's energy counter: a number, or the sentence why there is none. `synchronize()` waits
    for the device, `free_memory()` gives back what of its memory nothing uses. `snapshot(case)` names the file for a
    history of allocations, where one was asked for.
    """

    subject: Subject
    device: str
    process_bytes: Callable[[], int | str]
    card_bytes: Callable[[], int | str]
    millijoules: Callable[[], int | str]
    synchronize: Callable[[], Any]
    free_memory: Callable[[], None]
    counter: Counter = NOT_ASKED
    snapshot: Callable[[Case], Path] | None = None


Measure = Callable[[Step], Sequence[Measurement]]
"""One pass over a case made ready: at best one measurement for each of the probe's METRICS."""


def nowhere(device: str) -> str | None:
    """Where a probe is unavailable that measures on every device."""
    return None


class Probe(Protocol):
    """A quantity, or some that one pass gives: a file of this room, or an entry point of `repshift.probes`.

    A pass that raises costs its own metrics, not the row; one that raises `CaseBroken` costs the row.
    """

    METRICS: tuple[Metric, ...]
    """What it measures; `repshift metrics` lists them."""

    unavailable: Callable[[str], str | None] = nowhere
    """Why nothing of it can be measured on a device (`cpu`, `cuda:0`), or None."""

    def make(self, context: Context) -> Measure | None:
        """What measures the cases of one model, one after another; None where this run asks for no such pass."""
