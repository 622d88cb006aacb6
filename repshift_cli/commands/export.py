"""`repshift export`: a run in the format of another benchmark dashboard."""

from __future__ import annotations

import dataclasses
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from repshift_cli import registry
from repshift_cli.commands.shared.output import rendered
from repshift_cli.records import UsageError, store
from repshift_cli.renderers import Document, document_of

FORMATS = {
    part.name.replace("_", "-"): part for part in registry.parts("renderers").values() if part.constants.get("EXPORT")
}
"""What other tools read, by the names that --format takes."""


class Better(StrEnum):
    """Which metrics: github-action-benchmark takes one direction per file."""

    smaller = "smaller"
    bigger = "bigger"


DIRECTIONS = {Better.smaller: "lower", Better.bigger: "higher"}


def export(
    run: Annotated[Path, typer.Argument(help="The run file.", show_default=False)],
    format: Annotated[
        str,
        typer.Option("--format", help="Which dashboard.", metavar=f"[{'|'.join(FORMATS)}]", show_default=False),
    ],
    better: Annotated[
        Better, typer.Option(help="github-action-benchmark: metrics that are better smaller, or bigger.")
    ] = Better.smaller,
    commit: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="The commit that was measured, for a run that was made outside its checkout."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="File; for asv the results folder, with benchmarks.json and machine.json. (default: stdout)"),
    ] = None,
) -> None:
    """Write a run for Bencher, github-action-benchmark or asv."""
    if format not in FORMATS:
        near = registry.nearest(format, FORMATS)
        raise UsageError(f"--format: unknown format {format!r}: {near}there are {', '.join(FORMATS)}")
    stored = store.load(run)
    if not any(m.samples for record in stored.records for m in record.measurements):
        raise UsageError(f"{run} holds no figures, so there is nothing to export")
    if commit is not None:
        stored = dataclasses.replace(stored, machine=dataclasses.replace(stored.machine, commit=_checked(commit)))
    document = document_of(stored, DIRECTIONS[better])
    if out is not None and not FORMATS[format].constants.get("SUFFIX"):
        _write_folder(out, format, document)
        return
    text = rendered(FORMATS[format].name, document)
    if out is None:
        sys.stdout.write(text)
    else:
        _write(out, text)


def _checked(commit: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        raise UsageError(f"--commit: {commit!r} is no commit's hash of 7 to 40 hexadecimal digits, like 3f2c1ab")
    return commit


def _write_folder(folder: Path, format: str, document: Document) -> None:
    for name, text in registry.load(FORMATS[format]).files(document).items():
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    store.check_writable(path)
    store.write_text(path, text)
