"""HBM traffic: counted by an instrument that is believed, and modelled beside it; neither fills in for the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from repshift_cli.probes import NOT_ASKED, Context, Counter, Measure
from repshift_cli.probes.base.traffic_model import TrafficModel, watching
from repshift_cli.records import Measurement, Metric, Step

_MODEL = ("B", "lower", "value", "modelled")
_COUNTER = ("B", "lower", "median", "counter")
MODELLED = Metric(
    "hbm_modelled",
    "HBM modelled",
    *_MODEL,
    "Bytes that the operators of one forward read and write if no cache keeps anything: arithmetic, no measurement.",
)
READ = Metric(
    "hbm_modelled_read", "HBM read, modelled", *_MODEL, "The part of the modelled bytes that is read.", detail=True
)
WRITTEN = Metric(
    "hbm_modelled_written",
    "HBM written, modelled",
    *_MODEL,
    "The part of the modelled bytes that is written.",
    detail=True,
)
MEASURED = Metric(
    "hbm",
    "HBM",
    *_COUNTER,
    "Bytes between the GPU and its memory in one forward, counted by an instrument that passed its calibration.",
    gateable=False,
)
MEASURED_READ = Metric(
    "hbm_read", "HBM read", *_COUNTER, "The part of the counted bytes that is read.", gateable=False, detail=True
)
MEASURED_WRITTEN = Metric(
    "hbm_written",
    "HBM written",
    *_COUNTER,
    "The part of the counted bytes that is written.",
    gateable=False,
    detail=True,
)
METRICS = (MODELLED, READ, WRITTEN, MEASURED, MEASURED_READ, MEASURED_WRITTEN)


def make(context: Context) -> Measure:
    """The byte model, and this run's instrument."""
    return HbmProbe(context.counter).measure


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


def _of(metric: Metric, counter: Counter) -> Metric:
    """The metric with the instrument's name and label; a missing one keeps the plain name."""
    if counter.instrument is None:
        return metric
    words = counter.instrument if counter.label == "counter" else f"{counter.instrument}, {counter.label}"
    label = f"{metric.label} ({words})"
    return replace(metric, label=label, source=counter.label, provider=counter.instrument)
