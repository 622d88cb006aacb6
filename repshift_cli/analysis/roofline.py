"""The roofline of a forward: operations per byte moved, and operations per second (Williams et al. 2009)."""

from __future__ import annotations

from dataclasses import dataclass

from repshift_cli.analysis import stats
from repshift_cli.records import Record

MEASURED = ("counter", "sampled")


@dataclass(frozen=True)
class Working:
    """FLOPs per byte, FLOPs per second, and whether the bytes are a model's instead of a counter's."""

    intensity: float
    rate: float
    modelled: bool


def working(record: Record) -> Working | None:
    """Where the record stands, two FLOPs for each MAC; None without MACs, bytes or a time."""
    macs, time = (record.measurement(name) for name in ("macs", "latency"))
    moved = next((m for name in ("hbm", "hbm_modelled") if (m := record.measurement(name)) and m.samples), None)
    if not (macs and macs.samples and time and time.samples and moved) or record.unfit:
        return None
    flops, size, milliseconds = 2 * macs.samples[0] * record.case.batch, stats.point(moved), stats.point(time)
    if not (flops and size and milliseconds):
        return None
    return Working(flops / size, flops / milliseconds * 1e3, moved.source not in MEASURED)


@dataclass(frozen=True)
class Ceilings:
    """The most FLOPs and bytes per second of a machine, each None where it is not known."""

    compute: float | None = None
    bandwidth: float | None = None


def ceilings(record: Record) -> Ceilings:
    """The rates that were measured beside the record (a large matrix product's, a large copy's), or the memory's peak.

    The peak follows from the counted bytes and the share of it that they are said to be.
    """
    compute, copy, share = (_figure(record, n) for n in ("ceiling_tflops", "ceiling_bandwidth", "hbm_share_of_peak"))
    moved, time = (_figure(record, name) for name in ("hbm", "latency"))
    bandwidth = copy * 1e9 if copy else None
    if bandwidth is None and share and moved and time:
        bandwidth = moved / (time / 1e3) / (share / 100)
    return Ceilings(compute * 1e12 if compute else None, bandwidth)


def _figure(record: Record, metric: str) -> float | None:
    measured = record.measurement(metric)
    return stats.point(measured) if measured else None
