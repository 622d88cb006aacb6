"""Memory snapshot: torch's history of allocations during one forward, in a file for its viewer; it measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from repshift_cli.probes import Context, Measure
from repshift_cli.profiling.recorder import record_memory
from repshift_cli.records import Case, Measurement, Metric, Step

METRICS: tuple[Metric, ...] = ()


def make(context: Context) -> Measure | None:
    """One forward in which allocating is slower, where a file was asked for."""
    return partial(recorded, context.snapshot) if context.snapshot else None


def recorded(path: Callable[[Case], Path], step: Step) -> tuple[Measurement, ...]:
    """Write the history of one forward to the file that `path` names."""
    record_memory(step, path(step.case))
    return ()
