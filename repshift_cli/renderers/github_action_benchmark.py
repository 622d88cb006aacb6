"""github-action-benchmark's custom format: a JSON array of name, unit, value, range and extra.

Format: the action's README, `customSmallerIsBetter` and `customBiggerIsBetter`; one file holds one direction, so there
is one of each kind: `document.better` says which.
"""

from __future__ import annotations

import json
from typing import TextIO

from repshift_cli.analysis.stats import Estimate
from repshift_cli.records.json_codec import escaped
from repshift_cli.renderers import Document
from repshift_cli.renderers.sheets.metric_columns import exported

TAKES = ("run",)
SUFFIX = ".json"
OPTION = False
EXPORT = True


def render(document: Document, out: TextIO) -> None:
    """Write every metric of that direction, for the action's `output-file-path`."""
    run = document.content
    entries = [
        {
            "name": f"{m.label or m.metric}: {case.key}",
            "unit": m.unit,
            "value": figure.value,
            **({"range": _range(figure)} if figure.low is not None else {}),
            "extra": f"{m.source}, {len(m.samples)} samples, {run.tool}, {run.machine.device_name}",
        }
        for case, m, figure in exported(run)
        if m.better == document.better
    ]
    out.write(escaped(json.dumps(entries, indent=1, allow_nan=False)) + "\n")


def _range(figure: Estimate) -> str:
    """Half of the 95% interval, as the action's own extractors write it."""
    assert figure.low is not None and figure.high is not None
    return f"± {(figure.high - figure.low) / 2:.3g}"
