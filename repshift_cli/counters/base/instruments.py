"""The instruments in their order of trust, and one way to run any of them: a child process that counts."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from repshift_cli import registry
from repshift_cli.counters.base import child
from repshift_cli.counters.base.traffic import CounterError, Traffic
from repshift_cli.records import Case
from repshift_cli.records.json_codec import to_plain

ORDER = registry.ranked("counters")
"""Counters before the sampled rate; in the child itself before a program that has to be installed."""


def load(name: str) -> Any:
    """The instrument of that name: an `Instrument`, as a module that the child can import too."""
    return registry.load(registry.find("counters", name))


def run(instrument: Any, device: str, case: Case | None, ranges: int, limit: float = child.LIMIT) -> list[Traffic]:
    """Count in a child: `ranges` forwards of the case, or the known work where there is none; or CounterError."""
    request = {"instrument": instrument.__name__, "device": device, "case": to_plain(case), "ranges": ranges}
    with tempfile.TemporaryDirectory(prefix="repshift-") as place:
        folder = Path(place)
        counted = child.ask(request, folder, lambda worker: instrument.command(worker, folder), limit)
        try:
            found: list[Traffic] = instrument.collect(counted, folder, ranges)
        except (TypeError, ValueError) as error:
            raise CounterError(f"the child's answer does not fit: {counted!r:.80}") from error
    if len(found) != ranges:
        raise CounterError(f"{len(found)} ranges were counted instead of {ranges}")
    for traffic in found:
        _check(traffic)
    return found


def _check(traffic: Traffic) -> None:
    """CounterError for what no number of bytes can be."""
    for value in (traffic.total, traffic.read, traffic.written):
        number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if not number or (value is not None and not (math.isfinite(value) and value >= 0)):
            raise CounterError(f"{value!r:.40} is no number of bytes")
