"""`repshift metrics`: what every figure means, from the metrics' own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from repshift_cli.commands.shared.listing import Row, show_rows
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.renderers import Document

if TYPE_CHECKING:
    from repshift_cli.records import Metric

BETTER = {"lower": "less is better", "higher": "more is better"}


@output_options("metrics", laid_out=False)
def metrics(*, outputs: Outputs) -> None:
    """List the metrics. What each of them means, where it comes from, and whether the gate may judge by it."""
    from repshift_cli.benchmark.metrics import all_metrics

    found = sorted(all_metrics(), key=lambda metric: metric.name)
    outputs.write(Document("metrics", found))
    if not outputs.own_stdout:
        footer = "\nThe names are those of JSON and CSV, of `compare --metric` and of a profile's [thresholds]."
        show_rows(map(_row, found), footer)


def _row(metric: Metric) -> Row:
    unit = f" in {metric.unit}" if metric.unit not in ("", "x") else ""
    words = [f"{metric.label}{unit}", metric.source, metric.statistic, BETTER[metric.better]]
    words += ["gates" if metric.gateable else "never gates", *(["no column of a table"] if metric.detail else [])]
    return metric.name, f"{metric.description}\n{', '.join(words)}", None
