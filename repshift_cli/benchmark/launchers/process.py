"""In a worker process on this machine: whatever a model does to its process, the sweep goes on in a fresh one."""

from __future__ import annotations

from repshift_cli.benchmark.launchers import Terms
from repshift_cli.benchmark.pool import Pool
from repshift_cli.benchmark.workers import LocalCrew


def start(terms: Terms) -> Pool:
    """One worker, whose process starts at once."""
    return Pool(LocalCrew(patience=terms.patience))
