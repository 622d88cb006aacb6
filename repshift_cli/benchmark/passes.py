"""The probes of a run as passes: made ready for a model, in their order, each failing for itself."""

from __future__ import annotations

from dataclasses import dataclass

from repshift_cli import registry
from repshift_cli.benchmark.failures import is_poison, reason_of
from repshift_cli.probes import BEFORE_TIMING, ORDER, Context, Measure, Probe
from repshift_cli.records import CaseBroken, Measurement, Metric, Step, UsageError


@dataclass(frozen=True)
class Pass:
    """One probe made ready: its metrics, and what measures them or the reason why nothing does."""

    name: str
    metrics: tuple[Metric, ...]
    work: Measure | str

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """What the probe gives; where it fails, its metrics are missing with the reason.

        A probe without metrics has none to lose: its failure is the case's, as `CaseBroken` and the loss of CUDA's
        context are of any.
        """
        if isinstance(self.work, str):
            return self._missing(step, self.work)
        try:
            return tuple(self.work(step))
        except (UsageError, CaseBroken):
            raise
        except Exception as error:
            if not self.metrics or is_poison(error):
                raise
            return self._missing(step, reason_of(error))

    def _missing(self, step: Step, reason: str) -> tuple[Measurement, ...]:
        return tuple(metric.counting(step.subject.units).missing(reason) for metric in self.metrics)


def passes(context: Context) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """Every probe's pass for the context's model: those before the timed rounds, and those after, in their order."""
    made = [(part.name, registry.load(part)) for part in in_order()]
    found = [(name, probe, _work(probe, context)) for name, probe in made]
    ready = [Pass(name, probe.METRICS, work) for name, probe, work in found if work is not None]
    before = tuple(one for one in ready if one.name in BEFORE_TIMING)
    return before, tuple(one for one in ready if one not in before)


def in_order() -> list[registry.Part]:
    """The probes that are here, in the order of their passes."""
    places = {name: place for place, name in enumerate(ORDER)}
    return sorted(registry.parts("probes").values(), key=lambda part: (places.get(part.name, len(places)), part.name))


def _work(probe: Probe, context: Context) -> Measure | str | None:
    try:
        return probe.unavailable(context.device) or probe.make(context)
    except (UsageError, CaseBroken):
        raise
    except Exception as error:
        if is_poison(error):
            raise
        return reason_of(error)
