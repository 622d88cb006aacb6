"""Every metric that a run can hold, each once, in the order of the tables' columns."""

from __future__ import annotations

from repshift_cli import registry
from repshift_cli.benchmark import contenders, derived, execution
from repshift_cli.benchmark.operators import measures
from repshift_cli.benchmark.passes import in_order
from repshift_cli.evaluation import results
from repshift_cli.machine import cpu_state, gpu_state
from repshift_cli.records import Metric


def all_metrics() -> tuple[Metric, ...]:
    """What is timed, what the probes that are here measure, what follows from both, and the machine's own state."""
    sources = (
        contenders,
        *(registry.load(part) for part in in_order()),
        *(registry.load(part) for part in registry.parts("evaluation.tasks").values()),
        results,
        derived,
        execution,
        measures,
        cpu_state,
        gpu_state,
    )
    found = {metric.name: metric for source in sources for metric in source.METRICS}
    return tuple(found.values())
