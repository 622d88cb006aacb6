"""`repshift report`: one page to look at, from any of the tool's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from repshift_cli.records import UsageError, store


def report(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            help="Run files, profiles (--summary), inspections, gates, histories, searches (--json), or folders.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page; - is stdout.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="What stands at its top. (default: the files' names)")] = None,
) -> None:
    """Write one self-contained HTML page of stored runs. Verdict, tables that sort, charts, machine, and the data."""
    from repshift_cli.commands.shared import output
    from repshift_cli.commands.shared.stored import documents
    from repshift_cli.renderers import Document

    if not files:
        raise UsageError("name a file: repshift report RUN (repshift bench writes run files into repshift-runs/)")
    if str(out) != output.STDOUT:
        if out.suffix == ".json":
            raise UsageError(f"--out: {out} is named as JSON, and a page is HTML; name it like report.html")
        store.check_writable(out)
    found = documents(files)
    named = title or ", ".join(dict.fromkeys(d.title for d in found))
    output.write(str(out), output.rendered("html", Document("report", found, title=f"repshift: {named}")))
    if str(out) != output.STDOUT:
        typer.echo(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB)", err=True)
