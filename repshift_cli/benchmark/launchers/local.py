"""In worker processes here, one for each GPU that is named (`local:0,1`), with its share of the cores."""

from __future__ import annotations

from repshift_cli.benchmark.agent import share_of_cores
from repshift_cli.benchmark.launchers import Terms
from repshift_cli.benchmark.pool import Pool
from repshift_cli.benchmark.worker import Setup
from repshift_cli.benchmark.workers import LocalCrew
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
        Setup(f"local:{gpu}", share_of_cores(n, len(places)), (("CUDA_VISIBLE_DEVICES", gpu),))
        for n, gpu in enumerate(places)
    )
    return Pool(LocalCrew(terms.patience, tuple(setups)), named=True)
