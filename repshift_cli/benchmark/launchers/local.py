"""In worker processes here, one for each GPU that is named (`local:0,1`), with its share of the cores."""

from __future__ import annotations

import os

from repshift_cli.benchmark.agent import share_of_cores
from repshift_cli.benchmark.launchers import Terms
from repshift_cli.benchmark.pool import Pool
from repshift_cli.benchmark.worker import Setup
from repshift_cli.benchmark.workers import LocalCrew
from repshift_cli.machine.nvml import gpu_count
from repshift_cli.records import UsageError


def start(terms: Terms) -> Pool:
    """One worker for each place: it sees that GPU alone. Cores are never shared, for two that compute on one disturb
    each other's times; so there may be no more places than cores."""
    places = [piece.strip() for piece in terms.where.split(",")]
    if not all(piece.isdecimal() for piece in places) or len(set(places)) < len(places):
        raise UsageError(f"--on local:{terms.where} names no GPUs; write their numbers, like local:0,1")
    if terms.parallel is not None:
        raise UsageError(f"--on local:{terms.where} says itself how many work at once; leave out --parallel")
    setups = (
        Setup(f"local:{gpu}", share_of_cores(n, len(places)), (("CUDA_VISIBLE_DEVICES", visible(int(gpu))),))
        for n, gpu in enumerate(places)
    )
    return Pool(LocalCrew(terms.patience, tuple(setups)), named=True)


def visible(gpu: int) -> str:
    """The GPU of this number as CUDA_VISIBLE_DEVICES names it: among those that the command may see, where the variable
    is set already (by a cluster's scheduler). UsageError where there is none of that number."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen in ("", "-1"):  # hidden, and so they stay
        return seen
    named = [name.strip() for name in seen.split(",")] if seen else [str(n) for n in range(gpu_count())]
    if named and gpu >= len(named):
        where = f"CUDA_VISIBLE_DEVICES={seen} shows" if seen else "this machine has"
        raise UsageError(f"there is no GPU local:{gpu}: {where} {len(named)}, counted from 0")
    return named[gpu] if named else str(gpu)
