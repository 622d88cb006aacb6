"""`repshift export`: a run in the format of another benchmark dashboard."""

from __future__ import annotations

import importlib
import io
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from repshift_cli.records import UsageError, store


class Format(StrEnum):
    """The dashboards that take our numbers."""

    bencher = "bencher"
    github_action_benchmark = "github-action-benchmark"
    asv = "asv"


class Better(StrEnum):
    """Which metrics: github-action-benchmark takes one direction per file."""

    smaller = "smaller"
    bigger = "bigger"


def export(
    run: Annotated[Path, typer.Argument(help="The run file.", show_default=False)],
    format: Annotated[Format, typer.Option("--format", help="Which dashboard.", show_default=False)],
    better: Annotated[
        Better, typer.Option(help="github-action-benchmark: metrics that are better smaller, or bigger.")
    ] = Better.smaller,
    out: Annotated[
        Path | None,
        typer.Option(help="File; for asv the results folder, with benchmarks.json and machine.json. (default: stdout)"),
    ] = None,
) -> None:
    """Write a run for Bencher, github-action-benchmark or asv."""
    renderer = importlib.import_module(f"repshift_cli.renderers.{format.name}")
    stored = store.load(run)
    if not any(m.samples for record in stored.records for m in record.measurements):
        raise UsageError(f"{run} holds no figures, so there is nothing to export")
    if format is Format.asv and out is not None:
        for name, text in renderer.files(stored).items():
            _write(out / name, text)
        return
    more = {"better": {"smaller": "lower", "bigger": "higher"}[better]} if format.name.startswith("github") else {}
    text = io.StringIO()
    renderer.render(stored, text, **more)
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        _write(out, text.getvalue())


def _write(path: Path, text: str) -> None:
    store.check_writable(path)
    store.write_text(path, text)
