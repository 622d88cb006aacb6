"""A table for the terminal that shows as many columns as its width holds."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from typing import TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from repshift_cli.renderers import Document, View
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, Cell, Column, Sheet
from repshift_cli.renderers.sheets.order import HEADLINE_RANKS, meant
from repshift_cli.renderers.sheets.row_columns import KERNEL

TAKES = ("sheets",)
SUFFIX = ".txt"
OPTION = False

STYLES = {"good": "green", "bad": "red", "quiet": "dim", "failed": "bold red", "skipped": "yellow"}
GAP = 2
HEADING_WIDTH = 8
UNLIMITED = 100_000
PIPED = 100
"""Columns that a run's table has where nobody says how wide it may be."""


def render(document: Document, out: TextIO, console: Console | None = None) -> None:
    """Print every sheet; a console given is used as it is, its width included."""
    view = document.view
    if view is not None and (view.wide or view.columns):
        console = console_for(out, UNLIMITED)
    console = console or console_for(out)
    ready = document.sheets
    if not ready:
        console.print("no case was planned or recorded in this run")
    for number, sheet in enumerate(ready):
        if number:
            console.print()
        print_sheet(sheet, console, document.whole, view)


def console_for(out: TextIO, width: int | None = None) -> Console:
    """A console on `out`: a terminal's own width; COLUMNS where that is set; else (piped) no limit and no colour."""
    console = Console(file=out, highlight=False, markup=False, emoji=False, width=width)
    if width is not None or console.is_terminal or os.environ.get("COLUMNS", "").isdigit():
        return console
    return console_for(out, UNLIMITED)


def print_sheet(sheet: Sheet, console: Console, whole: str = "--csv", view: View | None = None) -> None:
    """Print one sheet in the console's width; `whole` is the option that has the columns for which there is no room."""
    room = PIPED if view is not None and not view.wide and console.width == UNLIMITED else console.width
    if view is not None and view.columns:
        shown, folded, room = asked_for(sheet.columns, view.columns), False, UNLIMITED
    else:
        shown, folded = layout(sheet.columns, room)
    console.print(Text(_wrapped(sheet.header, console.width), "bold"))
    console.print()
    if sheet.columns[0].cells:
        console.print(_table(shown, folded) if shown else _stack(sheet.columns))
        if not (view and view.quiet and not sheet.urgent):
            console.print()
    left_out = [column for column in sheet.columns if shown and column not in shown and room != UNLIMITED]
    _print_notes(sheet, console, view or View(verbose=True), left_out)
    names = [_with_constant(column) for column in left_out if column.title != KERNEL]
    if names and not (view and view.quiet):
        console.print(_hanging(f"not shown at {room} columns: {', '.join(names)}; {whole} has all", "dim"))
    _print_answer(sheet, console)


def _print_notes(sheet: Sheet, console: Console, view: View, left_out: Sequence[Column]) -> None:
    """What stands below a table: of few words what failed, else what matters, else all."""
    if view.quiet:
        for note in sheet.urgent:
            console.print(_hanging(note))
        return
    if sheet.kernels and any(column.title == KERNEL for column in left_out):
        console.print(_hanging(sheet.kernels))
    shown = [note for note in sheet.notes if view.verbose or note not in sheet.details]
    for note in shown:
        console.print(_hanging(note))
    if folded := len(sheet.notes) - len(shown):
        console.print(
            _hanging(f"{folded} more note{'s' * (folded > 1)}, on what was not measured and why: --verbose", "dim")
        )


def _print_answer(sheet: Sheet, console: Console) -> None:
    """The lines that apply what was found, then the plain answer."""
    for text in filter(None, (textwrap.indent(sheet.code, "    "), Text(sheet.answer, "bold"))):
        console.print()
        console.print(text)


def _with_constant(column: Column) -> str:
    return column.title if column.metric or column.constant is None else f"{column.title} {column.constant}"


def asked_for(columns: Sequence[Column], words: Sequence[str]) -> list[Column]:
    """The columns that were named, in that order, behind those that tell the rows apart."""
    names = [column.name or column.title for column in columns]
    wanted = [name for word in words for name in meant(word, names)]
    named = [column for name in dict.fromkeys(wanted) for column in columns if (column.name or column.title) == name]
    return [*(c for c in columns if c.rank == ALWAYS and c not in named), *named]


# --- which columns fit ------------------------------------------------------------------------------------------------


def layout(columns: Sequence[Column], width: int) -> tuple[list[Column], bool]:
    """The columns that fit, and whether intervals go to a second line of their cells: where else a headline would miss.

    No columns where not even the first metric fits.
    """
    shown = _fitting(columns, width, folded=False)
    if all(column in shown for column in columns if column.rank < HEADLINE_RANKS):
        return shown, False
    return _fitting(columns, width, folded=True), True


def _fitting(columns: Sequence[Column], width: int, folded: bool) -> list[Column]:
    """The columns that fit whole, chosen by rank and kept in their order; none where the first metric does not fit."""
    chosen = [column for column in columns if column.rank == ALWAYS]
    for column in sorted((c for c in columns if c.rank != ALWAYS), key=lambda c: c.rank):
        if _total([*chosen, column], folded) <= width:
            chosen.append(column)
        elif column.metric and not any(c.metric for c in chosen):
            return []
    return [column for column in columns if column in chosen] if _total(chosen, folded) <= width else []


def _total(columns: Sequence[Column], folded: bool) -> int:
    widths = [max(_body(c, folded), *map(cell_len, _heading(c, folded))) for c in columns]
    return sum(widths) + GAP * (len(widths) - 1)


def _body(column: Column, folded: bool) -> int:
    lines = [line for cell in column.cells for line in ((cell.text, cell.detail) if folded else (cell.line,))]
    return max(map(cell_len, lines), default=0)


def _heading(column: Column, folded: bool) -> list[str]:
    """The title on as many lines as keep it from making the column wider than its cells ask for."""
    longest = max(map(len, column.title.split()))
    return textwrap.wrap(column.title, max(longest, _body(column, folded), HEADING_WIDTH))


# --- how they are drawn -----------------------------------------------------------------------------------------------


def _table(columns: Sequence[Column], folded: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    headings = [_heading(column, folded) for column in columns]
    height = max(map(len, headings))
    for column, lines in zip(columns, headings, strict=True):
        heading = Text("\n".join([""] * (height - len(lines)) + lines))
        table.add_column(heading, justify="right" if column.numeric else "left", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(_text(cell, "\n" if folded else " ") for cell in row))
    return table


def _text(cell: Cell, gap: str = " ") -> Text:
    text = Text().append(cell.text, STYLES.get(cell.tone, ""))
    return text.append(gap + cell.detail, "dim") if cell.detail else text


def _stack(columns: Sequence[Column]) -> Text:
    """Each row as a block of lines, for a width at which a table would leave out what matters most."""
    lines = []
    for name, *cells in zip(*(column.cells for column in columns), strict=True):
        lines.append(Text(name.line, "bold"))
        for column, cell in zip(columns[1:], cells, strict=True):
            if cell.text != MISSING:
                lines.append(Text(f"  {column.title}: ").append_text(_text(cell)))
    return Text("\n").join(lines)


def _wrapped(parts: Sequence[str], width: int) -> str:
    """The parts with dots between them, lines broken only after a dot."""
    line = " ".join(f"{part}\xa0·".replace(" ", "\xa0") for part in parts)[:-2]
    return textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False).replace("\xa0", " ")


def _hanging(note: str, style: str = "") -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(Text("·", "dim"), Text(note, style))
    return grid
