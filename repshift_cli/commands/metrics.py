"""`repshift metrics`: what every figure means, from the metrics' own words."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from repshift_cli.commands.shared.listing import Row, show_rows

if TYPE_CHECKING:
    from repshift_cli.records import Metric

BETTER = {"lower": "less is better", "higher": "more is better"}


def metrics(
    json_to: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write JSON to this file, - for stdout.")
    ] = None,
) -> None:
    """List the metrics: what each of them means, where it comes from, and whether the gate may judge by it."""
    from repshift_cli.benchmark.metrics import all_metrics
    from repshift_cli.commands.shared.output import STDOUT, write

    found = all_metrics()
    if json_to is not None:
        text = json.dumps([dataclasses.asdict(metric) for metric in found], indent=1, ensure_ascii=False) + "\n"
        write(json_to, text)
        if json_to == STDOUT:
            return
    footer = "\nAn older run file's metrics are shown as they were; `repshift show RUN --json -` has all raw samples."
    show_rows(map(_row, found), footer)
    sys.stdout.flush()


def _row(metric: Metric) -> Row:
    unit = f" in {metric.unit}" if metric.unit not in ("", "x") else ""
    words = [f"{metric.label}{unit}", metric.source, metric.statistic, BETTER[metric.better]]
    words += ["gates" if metric.gateable else "never gates", *(["no column of a table"] if metric.detail else [])]
    return metric.name, f"{metric.description}\n{', '.join(words)}", None
