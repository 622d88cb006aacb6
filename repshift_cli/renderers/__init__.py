"""One file per output format, found by the registry: what a format offers, and the document that it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from repshift_cli.records import Run
from repshift_cli.records.inspection import Inspection
from repshift_cli.records.profile import ProfileRun
from repshift_cli.records.tuning import Tuning

if TYPE_CHECKING:
    from repshift_cli.renderers.sheets.cells import Sheet

SHEETS = "sheets"
"""In a renderer's TAKES: every document that is laid out as tables."""
ANY = "any"
"""In a renderer's TAKES: every document, by its content."""


@dataclass(frozen=True)
class View:
    """What a terminal gets of a run's tables: these `columns` alone (metrics by name), or all of them (`wide`).

    Below a table stand the notes that matter most; `quiet` leaves what failed, `verbose` gives all.
    """

    columns: tuple[str, ...] = ()
    wide: bool = False
    quiet: bool = False
    verbose: bool = False


@dataclass(frozen=True)
class Document:
    """What a command has to show: the record itself, and the tables that it is laid out as, made when asked for.

    `kind` says what `content` is: `run` (a `Run`), `profile` (a `ProfileRun`), `inspection` (an `Inspection`), `tuning`
    (a `Tuning`), `gate` (an `Outcome`), or another word with a record, or with plain values. `title` and `sentence`
    stand above the tables of a file, `summary` ahead of the content in JSON. `whole` is the option whose file has the
    columns for which a terminal has no room. `better` is the direction wanted by a format that holds one only. With no
    `view` a table has all that its width holds.
    """

    kind: str
    content: Any
    lay_out: Callable[[], Sequence[Sheet]] | None = None
    title: str = ""
    sentence: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    whole: str = "--csv"
    better: str = "lower"
    view: View | None = None

    @property
    def sheets(self) -> Sequence[Sheet]:
        """The tables, every text in them printable on one line; none where it is not laid out as any."""
        from repshift_cli.renderers.sheets.cells import printable_sheet

        return [printable_sheet(sheet) for sheet in self.lay_out()] if self.lay_out else ()


def document_of(run: Run | ProfileRun | Inspection | Tuning, better: str = "lower") -> Document:
    """A measured or stored run, a profile, an inspection or a search; `better` as in `Document`."""

    def lay_out() -> Sequence[Sheet]:
        from repshift_cli.renderers.sheets import inspection, profile, tuning

        if isinstance(run, Tuning):
            return tuning.sheets(run)
        return inspection.sheets_of(run) if isinstance(run, Inspection) else profile.sheets_of(run)

    if isinstance(run, Tuning):
        return Document(run.kind, run, lay_out, f"repshift tune: {run.status}", run.sentence)
    if isinstance(run, Run):
        return Document("run", run, lay_out, whole="--wide", better=better, view=View())
    return Document(run.kind, run, lay_out, better=better)


class Renderer(Protocol):
    """An output format: a file of this room, or of another package by the entry point group `repshift.renderers`.

    The first line of its docstring is the option's help. The constants are literals at its top level, for they are read
    without importing it.
    """

    TAKES: tuple[str, ...]
    """The kinds of documents that it renders, `SHEETS` or `ANY`."""

    OPTION: bool = True
    """Whether every command with such a document has the option `--NAME FILE`."""

    EXPORT: bool = False
    """Whether it is a format of `repshift export`: what another tool reads."""

    SUFFIX: str
    """How its files are named, like `.csv`; empty where it is a folder, whose `files(document)` gives text by path."""

    def render(self, document: Document, out: TextIO) -> None:
        """Write the document; UsageError where this one cannot be written so."""


def takes(accepted: Sequence[str], kind: str, laid_out: bool) -> bool:
    """Whether a renderer with `accepted` as its TAKES renders documents of this kind."""
    return kind in accepted or ANY in accepted or (laid_out and SHEETS in accepted)
