"""In a worker process on this machine: whatever a model does to its process, the sweep goes on in a fresh one."""

from __future__ import annotations

from repshift_cli.benchmark.agent import share_of_cores
from repshift_cli.benchmark.launchers import Terms
from repshift_cli.benchmark.pool import Pool
from repshift_cli.benchmark.worker import Setup
from repshift_cli.benchmark.workers import LocalCrew
from repshift_cli.machine.nvml import gpu_count
from repshift_cli.records import UsageError


def start(terms: Terms) -> Pool:
    """One worker, whose process starts at once; of several each has cores to itself."""
    if terms.parallel in (None, 1):
        return Pool(LocalCrew(terms.patience))
    if terms.device != "cpu" and gpu_count():
        raise UsageError(
            "--parallel would have comparisons share one GPU, and disturb each other; "
            "name a GPU for each: --on local:0,1, or --device cpu"
        )
    shares = range(terms.parallel or 1)
    setups = tuple(Setup(f"cpu:{n}", share_of_cores(n, len(shares))) for n in shares)
    return Pool(LocalCrew(terms.patience, setups), named=True)
