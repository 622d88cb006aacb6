"""Example of a probe that fails: its own figure is missing with the reason, the row is not."""

from collections.abc import Sequence

from repshift_cli.probes import Context, Measure
from repshift_cli.records import Measurement, Metric, Step

METRICS = (Metric("example_luck", "luck", "", "higher", "value", "counted", "What cannot be counted."),)


def make(context: Context) -> Measure:
    return measure


def measure(step: Step) -> Sequence[Measurement]:
    raise LookupError("there is none to count")
