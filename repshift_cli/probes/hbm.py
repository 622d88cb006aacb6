"""HBM traffic: counted by an instrument that is believed, and modelled beside it; neither fills in for the other."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repshift_cli.probes.base.traffic_model import TrafficModel, watching
from repshift_cli.records import Measurement, Metric, Step

MODELLED = Metric("hbm_modelled", "HBM modelled", "B", "lower", "value", 30, "modelled")
READ = Metric("hbm_modelled_read", "HBM read, modelled", "B", "lower", "value", 110, "modelled")
WRITTEN = Metric("hbm_modelled_written", "HBM written, modelled", "B", "lower", "value", 111, "modelled")
MEASURED = Metric("hbm", "HBM", "B", "lower", "median", 21, "counter")
MEASURED_READ = Metric("hbm_read", "HBM read", "B", "lower", "median", 112, "counter")
MEASURED_WRITTEN = Metric("hbm_written", "HBM written", "B", "lower", "median", 113, "counter")
SHARE = Metric("hbm_share_of_peak", "peak bandwidth used", "%", "higher", "value", 23, "counter")
INTENSITY = Metric("arithmetic_intensity", "FLOP/B", "", "higher", "value", 24, "counter")
RATIO = Metric("hbm_modelled_over_measured", "modelled/HBM", "x", "lower", "value", 114, "counter")

DISAGREEMENT = 1.02
"""A share of the peak bandwidth above this cannot be: the counter, the peak or the time is wrong."""


@dataclass(frozen=True)
class Counter:
    """The run's instrument as this probe sees it: `count(case)` gives objects with total, read and written bytes.

    Without an instrument, `reason` says why. `errors` are what `count` raises where one case cannot be counted.
    """

    instrument: str | None
    reason: str
    label: str = "counter"
    count: Callable[[Any], Sequence[Any]] = lambda _: ()
    errors: tuple[type[Exception], ...] = ()
    modelled: bool = True


NOT_ASKED = Counter(None, "not asked for")


class HbmProbe:
    """One forward under the byte model, and the forwards that the instrument counts."""

    def __init__(self, counter: Counter = NOT_ASKED) -> None:
        self._counter = counter

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """Both passes; what was not asked for or could not be counted is missing with the reason."""
        counted = tuple(self._counted(step))
        if not self._counter.modelled:
            return (*counted, *(m.missing(self._counter.reason) for m in (MODELLED, READ, WRITTEN)))
        return (*modelled(step), *counted)

    def _counted(self, step: Step) -> Iterator[Measurement]:
        counter = self._counter
        metrics = [_of(metric, counter) for metric in (MEASURED, MEASURED_READ, MEASURED_WRITTEN)]
        if counter.instrument is None:
            yield from (metric.missing(counter.reason) for metric in metrics)
            return
        try:
            found = counter.count(step.case)
        except counter.errors as error:
            yield from (metric.missing(f"{counter.instrument}: {error}") for metric in metrics)
            return
        yield metrics[0].of(*(t.total for t in found))
        for metric, values in zip(metrics[1:], ([t.read for t in found], [t.written for t in found]), strict=True):
            told = [v for v in values if v is not None]
            yield metric.of(*told) if told else metric.missing(f"{counter.instrument} tells the sum only")


def modelled(step: Step) -> tuple[Measurement, ...]:
    """The byte model of one forward, its sum by operator and by block."""
    watched = step.operators
    with watched.active(), TrafficModel() as traffic, watching(traffic, watched.subject.sites):
        watched.forward()
    parts = {
        kind: {name: float(sum(moved)) for name, moved in sums.items()}
        for kind, sums in (("operator", traffic.operators), ("block", traffic.blocks))
    }
    total = replace(MODELLED.of(traffic.read + traffic.written), parts=parts)
    return (total, READ.of(traffic.read), WRITTEN.of(traffic.written))


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


def _of(metric: Metric, counter: Counter) -> Metric:
    """The metric with the instrument's name and label; a missing one keeps the plain name."""
    if counter.instrument is None:
        return metric
    words = counter.instrument if counter.label == "counter" else f"{counter.instrument}, {counter.label}"
    label = f"{metric.label} ({words})"
    return replace(metric, label=label, source=counter.label, provider=counter.instrument)
