"""In worker processes here, one for each GPU that is named (`local:0,1`), with its share of the cores."""

from __future__ import annotations

import os

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
    cores = _cores()
    if len(places) > len(cores):
        raise UsageError(f"--on local:{terms.where} needs {len(places)} cores, and there are {len(cores)}; name fewer")
    return Pool(LocalCrew(terms.patience, tuple(_setup(n, places, cores) for n in range(len(places)))))


def _setup(number: int, places: list[str], cores: list[int]) -> Setup:
    share = len(cores) // len(places)
    own = tuple(cores[number * share : (number + 1) * share])
    return Setup(f"local:{places[number]}", own, (("CUDA_VISIBLE_DEVICES", places[number]),))


def _cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
