"""`repshift show`: a stored run, rendered again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from repshift_cli import store
from repshift_cli.commands._output import emit
from repshift_cli.records import UsageError, json_schema

FILE_OR_STDOUT = "FILE|-"


def show(
    run: Annotated[Path | None, typer.Argument(help="The run file.", show_default=False)] = None,
    json_to: Annotated[
        str | None, typer.Option("--json", metavar=FILE_OR_STDOUT, help="The whole run as JSON, raw samples included.")
    ] = None,
    csv_to: Annotated[
        str | None, typer.Option("--csv", metavar=FILE_OR_STDOUT, help="One line per case, every metric.")
    ] = None,
    markdown_to: Annotated[
        str | None, typer.Option("--markdown", metavar=FILE_OR_STDOUT, help="The table for a GitHub page.")
    ] = None,
    traffic: Annotated[
        bool, typer.Option("--traffic", help="Say which operators and which blocks move the modelled bytes.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of run files and stop.")] = False,
) -> None:
    """Show a stored run as a table, or as JSON, CSV or Markdown (- is stdout, with nothing else on it)."""
    if schema:
        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if run is None:
        raise UsageError("name a run file: repshift show RUN (repshift bench writes them)")
    loaded = store.load(run)
    if traffic:
        from repshift_cli.renderers import _traffic
        from repshift_cli.renderers.table import console_for

        _traffic.render(loaded, console_for(sys.stdout))
        return
    emit(loaded, json_to, csv_to, markdown_to)
