"""On a Ray cluster, each comparison on a GPU of its own: a running cluster, one made here, or ray://HOST:PORT."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import repshift_cli
from repshift_cli.benchmark.agent import Post
from repshift_cli.benchmark.launchers import Terms
from repshift_cli.benchmark.parcel import packed
from repshift_cli.benchmark.pool import Pool
from repshift_cli.benchmark.tasks import Equipping
from repshift_cli.machine.packages import install, is_installed
from repshift_cli.records import UsageError, one_line

PATIENCE = 5
"""Seconds to wait for a far cluster's port."""


def start(terms: Terms) -> Pool:
    """Connect, and send an agent to every GPU; with `--device cpu`, or where there are none, to every machine."""
    if not is_installed("ray"):
        raise UsageError(f"--on ray needs Ray, which is not installed: {install('ray')}")
    check_reached(terms.where)
    import ray

    parcel = packed(terms.models, terms.files)
    with _own_handlers():
        _connect(ray, terms.where)
    from repshift_cli.benchmark.cluster import RayCrew, Wanted

    places = list(posts(ray.nodes(), terms))
    if not places:
        ray.shutdown()
        raise UsageError(f"no machine of the cluster has a {terms.device} device; see `ray status`")
    equipping = Equipping(terms.device, terms.hbm, terms.threads)
    return Pool(RayCrew(places, Wanted(terms.patience, parcel, equipping, terms.kind)), named=True)


def check_reached(where: str) -> None:
    """UsageError where nothing listens at //HOST:PORT: Ray's own client tries for most of a minute."""
    host, _, port = where.removeprefix("//").rpartition(":")
    if not where.startswith("//") or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at ray:{where}: {one_line(error)}") from error


def _connect(ray: Any, where: str) -> None:
    """`where` is what stands behind `ray:`; nothing is a running cluster, or one of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = f"ray:{where}" if where.startswith("//") else where or None
    package = str(Path(repshift_cli.__file__).parent)
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        ray.init(address=address, runtime_env={"py_modules": [package]}, **quiet)
    except ImportError as error:
        raise UsageError(f"--on ray:{where} needs Ray's client: {install('ray')}") from error
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise UsageError(f"no Ray cluster answers at {address or 'this machine'}: {_line(error)}") from error


def posts(nodes: list[dict[str, Any]], terms: Terms) -> Iterator[tuple[str, Post, dict[str, float]]]:
    """Where agents go: the node, the place on its machine, and what Ray keeps free for it.

    Several nodes may be on one machine. On a CPU a machine measures one comparison at a time, for two would share the
    bandwidth of its memory; `--parallel` says otherwise. GPUs have memory of their own.
    """
    hosts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for node in nodes:
        if node["Alive"]:
            hosts[node["NodeManagerHostname"]].append(node)
    on_gpus = terms.device != "cpu" and any(n["Resources"].get("GPU") for n in nodes if n["Alive"])
    if terms.device.startswith("cuda") and not on_gpus:
        return
    for host, own in hosts.items():
        what = "GPU" if on_gpus else "CPU"
        slots = [node["NodeID"] for node in own for _ in range(int(node["Resources"].get(what, 0)))]
        slots = _in_turn(slots)
        most = terms.parallel or (len(slots) if on_gpus else 1)
        for number, slot in enumerate(slots[:most]):
            needs = {"num_gpus": 1.0, "num_cpus": 0.0} if on_gpus else {"num_cpus": 1.0}
            yield slot, Post(f"{host}:{number}", number, min(most, len(slots))), needs


def _in_turn(slots: list[str]) -> list[str]:
    """One slot of each node, then another of each."""
    nodes = list(dict.fromkeys(slots))
    turns = max((slots.count(node) for node in nodes), default=0)
    return [node for turn in range(turns) for node in nodes if turn < slots.count(node)]


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Ray puts handlers of its own in the place of the command's; these are put back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
