"""Example probe: how large the model is."""

from collections.abc import Sequence

from repshift_cli.probes import Context, Measure
from repshift_cli.records import Measurement, Metric, Step

PARAMETERS = Metric(
    "example_parameters", "parameters", "", "lower", "value", "counted", "Parameters of the model, whatever they do."
)
METRICS = (PARAMETERS,)


def make(context: Context) -> Measure:
    return measure


def measure(step: Step) -> Sequence[Measurement]:
    return [PARAMETERS.of(sum(p.numel() for p in step.subject.module.parameters()))]
