"""The whole run as JSON, raw samples included: the same text as the run file."""

from __future__ import annotations

from typing import TextIO

from repshift_cli.records import Run
from repshift_cli.records.json_codec import to_json
from repshift_cli.records.profile import ProfileRun


def render(run: Run | ProfileRun, out: TextIO) -> None:
    """Write the run in the format of the run file."""
    out.write(to_json(run))
