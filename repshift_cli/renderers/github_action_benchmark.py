"""github-action-benchmark's custom format: a JSON array of name, unit, value, range and extra.

Format: the action's README, `customSmallerIsBetter` and `customBiggerIsBetter`; one file holds one direction, so there
is one of each kind: `render` writes what is better when smaller.
"""

from __future__ import annotations

import json
from typing import TextIO

from repshift_cli.analysis.stats import Estimate
from repshift_cli.records import Run
from repshift_cli.renderers.sheets.run import exported


def render(run: Run, out: TextIO, better: str = "lower") -> None:
    """Write every metric of that direction, for the action's `output-file-path`."""
    entries = [
        {
            "name": f"{m.label or m.metric}: {case.key}",
            "unit": m.unit,
            "value": figure.value,
            **({"range": _range(figure)} if figure.low is not None else {}),
            "extra": f"{m.source}, {len(m.samples)} samples, {run.tool}, {run.machine.device_name}",
        }
        for case, m, figure in exported(run)
        if m.better == better
    ]
    out.write(json.dumps(entries, indent=1, allow_nan=False) + "\n")


def _range(figure: Estimate) -> str:
    """Half of the 95% interval, as the action's own extractors write it."""
    assert figure.low is not None and figure.high is not None
    return f"± {(figure.high - figure.low) / 2:.3g}"
