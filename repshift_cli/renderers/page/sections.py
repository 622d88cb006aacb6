"""What a page says of one document: a verdict, the main table, figures, further tables, where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from repshift_cli.analysis.labelled import is_evaluation
from repshift_cli.records import Machine, Run
from repshift_cli.records.inspection import Inspection
from repshift_cli.records.profile import ProfileRun
from repshift_cli.renderers import Document
from repshift_cli.renderers.figures.measured import Measured
from repshift_cli.renderers.figures.of_document import figures_of
from repshift_cli.renderers.page import charts, tables
from repshift_cli.renderers.page.command import command_of
from repshift_cli.renderers.page.markup import Markup, tag
from repshift_cli.renderers.sheets import history, inspection, profile
from repshift_cli.renderers.sheets.answer import closing
from repshift_cli.renderers.sheets.break_even import maps
from repshift_cli.renderers.sheets.crossing import crossings
from repshift_cli.renderers.sheets.evaluation import sheets as sheets_of_evaluation
from repshift_cli.renderers.sheets.run import sheets as sheets_of_run

SENTENCES: Mapping[str, Callable[[Any], str]] = {
    "history": history.sentence,
    "inspection": inspection.sentence,
    "profile": profile.sentence,
}
"""What a document of this kind says in a sentence, where no sheet of it does."""
NO_ROOM = "The charts are left out, for the page would be too large: make one of this file alone."


def section(document: Document, source: str, charted: bool = True) -> Markup:
    """One document; `source` numbers it, so that what is in it has a name of its own in the page."""
    figures = figures_of(document) if charted else []
    palette = charts.palette_of(figures)
    drawings = [charts.chart(figure, palette, f"figure-{source}-{i}") for i, figure in enumerate(figures)]
    body = [
        tag("h2", document.title or document.kind),
        *_verdict(document),
        *_tables(document, source),
        tag("div", *drawings, class_="figures") if drawings else None,
        None if charted else tag("p", NO_ROOM),
        *_origin(document.content),
    ]
    return tag("section", *body, id=f"source-{source}")


def _verdict(document: Document) -> Iterator[Markup]:
    """The document's own sentence, or the answer of a run with the lines that apply it."""
    code, answer = _closing(document)
    said = SENTENCES[document.kind](document.content) if document.kind in SENTENCES else answer
    if sentence := document.sentence or said:
        yield tag("p", sentence, class_="verdict")
    if code:
        lines = tag("pre", tag("code", code), tabindex="0")
        yield tag("details", tag("summary", "the lines of Python that apply it"), lines)


def _closing(document: Document) -> tuple[str, str]:
    """The lines of Python that apply what was found, and the answer: of a run of all its groups."""
    if isinstance(document.content, Run) and not is_evaluation(document.content):
        return closing(document.content)
    return next(((sheet.code, sheet.answer) for sheet in document.sheets if sheet.answer), ("", ""))


def _tables(document: Document, source: str) -> Iterator[Markup | None]:
    """A run's cases as one table, with what is said below it; of another document its sheets."""
    if not isinstance(document.content, Run):
        yield from (tables.of_sheet(sheet, f"{source}-{i}") for i, sheet in enumerate(document.sheets))
        return
    run = document.content
    groups = (sheets_of_evaluation if is_evaluation(run) else sheets_of_run)(run)
    if groups:
        shared = (word for word in groups[0].header if all(word in g.header for g in groups))
        yield tag("p", " · ".join(shared), class_="header")
    if run.records:
        yield tables.main_table(Measured(run), source)
    yield tables.notes([*(g.kernels for g in groups if g.kernels), *(note for g in groups for note in g.notes)])
    for i, sheet in enumerate(() if is_evaluation(run) else (*maps(run), *crossings(run))):
        yield tag("details", tag("summary", sheet.header[0]), tables.of_sheet(sheet, f"{source}-{i}"))


# --- where it comes from ----------------------------------------------------------------------------------------------


def _origin(content: Any) -> Iterator[Markup | None]:
    if not isinstance(content, (Run, ProfileRun, Inspection)):
        return
    if command := command_of(content):
        yield tag("h3", "The command that measures this again")
        yield tag("pre", tag("code", command), tabindex="0")
    for machine in content.measured_on if isinstance(content, Run) else filter(None, [content.machine]):
        yield tag("details", tag("summary", "machine and versions"), _machine(machine, content))


def _machine(machine: Machine, content: Run | ProfileRun | Inspection) -> Markup:
    told = [(f.name, getattr(machine, f.name)) for f in dataclasses.fields(machine)]
    rows = [
        (name.replace("_", " "), _value(name, value, machine)) for name, value in told if isinstance(value, (str, int))
    ]
    rows += [(name.replace("_", " "), f"not read: {why}") for name, why in machine.missing.items()]
    rows += list(machine.packages.items())
    rows += [("measured", content.created), ("by", content.tool)]
    lines = (tag("tr", tag("th", name, scope="row"), tag("td", str(value))) for name, value in rows if value)
    return tag("div", tag("table", tag("tbody", *lines)), class_="scroll", tabindex="0")


def _value(name: str, value: str | int, machine: Machine) -> str:
    return f"{value / 2**30:.1f} GiB" if name in ("memory", "device_memory") and isinstance(value, int) else str(value)
