"""What follows from the passes and the time of a forward: the share of the peak bandwidth, FLOPs per byte, the pace."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from repshift_cli.analysis.answer import waits_for_host
from repshift_cli.records import Measurement, Metric

_OF_COUNTER = ("higher", "value", "counter")
SHARE = Metric(
    "hbm_share_of_peak",
    "peak bandwidth used",
    "%",
    *_OF_COUNTER,
    "The counted bytes over the time of a forward, as a share of the memory's peak bandwidth.",
)
INTENSITY = Metric(
    "arithmetic_intensity",
    "FLOP/B",
    "",
    *_OF_COUNTER,
    "Floating-point operations for each counted byte, two for each MAC.",
)
RATIO = Metric(
    "hbm_modelled_over_measured",
    "modelled/HBM",
    "x",
    "lower",
    "value",
    "counter",
    "The modelled bytes over the counted ones: what caches save, and how far the model is off.",
    detail=True,
)
METRICS = (SHARE, INTENSITY, RATIO)

DISAGREEMENT = 1.02
"""A share of the peak bandwidth above this cannot be: the counter, the peak or the time is wrong."""


def rates(
    measurements: Sequence[Measurement], milliseconds: float, batch: int, peak: float | str
) -> tuple[list[Measurement], list[str]]:
    """What follows from counted bytes and the time of a forward: the share of the peak bandwidth, FLOPs per byte.

    `peak` is in bytes per second, or why it is not known. Beside the measurements come warnings: what cannot be.
    """
    by_name = {m.metric: m for m in measurements}
    counted, macs, model = (by_name.get(name) for name in ("hbm", "macs", "hbm_modelled"))
    if counted is None:
        return [], []
    share, intensity, ratio = (
        replace(m, source=counted.source, provider=counted.provider) for m in (SHARE, INTENSITY, RATIO)
    )
    if not counted.samples:
        return [m.missing(counted.reason or "") for m in (share, intensity)], []
    moved = statistics.median(counted.samples)
    used = moved / (milliseconds / 1000)
    found = [share.missing(peak) if isinstance(peak, str) else share.of(100 * used / peak)]
    if macs is not None and macs.samples and moved:
        found.append(intensity.of(2 * macs.samples[0] * batch / moved))
    if model is not None and model.samples and moved:
        found.append(ratio.of(model.samples[0] / moved))
    return found, _impossible(used, peak)


def _impossible(used: float, peak: float | str) -> list[str]:
    if isinstance(peak, str) or used <= DISAGREEMENT * peak:
        return []
    return [
        f"{used / 1e9:.0f} GB/s were counted, above the peak of {peak / 1e9:.0f} GB/s: do not believe this HBM figure"
    ]


def paced_by_host(measurements: Sequence[Measurement], milliseconds: float, execution: str) -> list[str]:
    """What to say of a forward of so many milliseconds, where its kernels fill too little of that time."""
    busy = next((m for m in measurements if m.metric == "device_busy" and m.samples), None)
    if busy is None or not waits_for_host(busy.samples[0], milliseconds):
        return []
    cure = "a larger batch" if execution == "graph" else "--cuda-graph, or a larger batch,"
    return [
        f"the host sets the pace: the kernels take {busy.samples[0]:.2f} of {milliseconds:.2f} ms, so fewer tokens "
        f"save little; {cure} shows what the device can do"
    ]
