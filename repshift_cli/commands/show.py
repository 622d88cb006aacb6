"""`repshift show`: a stored run, profile, inspection or search, rendered again."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from repshift_cli.commands.shared import checks
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.records import Run, UsageError, store
from repshift_cli.records.json_codec import json_schema
from repshift_cli.records.profile import ProfileRun
from repshift_cli.renderers import document_of


@output_options("run", "profile", "inspection", "tuning")
def show(
    run: Annotated[
        Path | None, typer.Argument(help="The run file, the profile, the inspection or the search.", show_default=False)
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Of a profile: rows by part, layer, kernel or op.", show_default=False)
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Of a profile: also what changed between variants.")] = False,
    traffic: Annotated[
        bool, typer.Option("--traffic", help="Say which operators and which blocks move the modelled bytes.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of run files and stop.")] = False,
    *,
    outputs: Outputs,
) -> None:
    """Show a stored run, profile, inspection or search again. As a table, JSON, CSV or Markdown.

    With - as the file they go to stdout, with nothing else on it.
    """
    if schema:
        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if run is None:
        raise UsageError("name a run file: repshift show RUN (repshift bench writes them)")
    shown = store.load_any(run)
    if isinstance(shown, ProfileRun):
        shown = dataclasses.replace(shown, options=shown.options | _views(by, diff))
    elif by is not None or diff:
        raise UsageError(f"{run} is no profile: leave out {'--by' if by is not None else '--diff'}")
    if traffic:
        _show_traffic(shown, run)
        return
    outputs.emit(document_of(shown))


def _show_traffic(shown: Any, file: Path) -> None:
    """What moves the bytes of each case of a run."""
    from repshift_cli.renderers.sheets import traffic
    from repshift_cli.renderers.table import console_for

    if not isinstance(shown, Run):
        raise UsageError(f"{file} is no run: leave out --traffic")
    traffic.render(shown, console_for(sys.stdout))


def _views(by: str | None, diff: bool) -> dict[str, Any]:
    """The views of a profile that were asked for; the others stay as they were stored."""
    if by is not None:
        checks.check_view(by)
    return ({} if by is None else {"by": by}) | ({"diff": True} if diff else {})
