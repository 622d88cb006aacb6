"""Bencher Metric Format: one benchmark per case, a measure per metric with its interval.

Format: bencher.dev/docs/reference/bencher-metric-format. A measure is named with its unit (`latency-ms`), for Bencher's
own `latency` is in nanoseconds.
"""

from __future__ import annotations

import json
import re
from typing import TextIO

from repshift_cli.analysis.stats import Estimate
from repshift_cli.records import Measurement
from repshift_cli.records.json_codec import escaped
from repshift_cli.renderers import Document
from repshift_cli.renderers.sheets.metric_columns import exported

TAKES = ("run",)
SUFFIX = ".json"
OPTION = False
EXPORT = True


def render(document: Document, out: TextIO) -> None:
    """Write the run as BMF JSON, for `bencher run --adapter json --file FILE`."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for case, measurement, figure in exported(document.content):
        found.setdefault(case.key, {})[_measure(measurement)] = _metric(figure)
    out.write(escaped(json.dumps(found, indent=1, allow_nan=False)) + "\n")


def _measure(measurement: Measurement) -> str:
    """A slug of at most 64 characters."""
    unit = {"1/s": "per-s", "%": "percent", "x": ""}.get(measurement.unit, measurement.unit)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{measurement.metric} {unit}".lower()).strip("-")
    return slug[:64]


def _metric(figure: Estimate) -> dict[str, float]:
    if figure.low is None or figure.high is None:
        return {"value": figure.value}
    return {"value": figure.value, "lower_value": figure.low, "upper_value": figure.high}
