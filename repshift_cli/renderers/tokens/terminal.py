"""Tokens in the terminal: a sentence with what was dropped struck out, a grid of what stayed, the counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from repshift_cli.records.places import Cut, Shown
from repshift_cli.records.text import printable
from repshift_cli.renderers.plot import is_unicode
from repshift_cli.renderers.table import console_for
from repshift_cli.renderers.tokens.gallery import Gallery, counted, spaced

UNICODE, ASCII = ("█", "·"), ("#", ".")
"""A place that stayed, and one that is gone."""
WIDEST_GRID = 56


def render(gallery: Gallery, out: TextIO, console: Console | None = None) -> None:
    """Print every case, cut by cut."""
    console = console or console_for(out)
    for trace in gallery.traces:
        console.print(Text(printable(gallery.names[trace.case]), "bold"))
        for cut in trace.cuts:
            console.print(Text(f"  {counted(cut, gallery.shown)}"))
            if gallery.shown.words:
                console.print(_sentence(cut, gallery.shown, console))
            else:
                for line in _grid(cut, gallery.shown, console):
                    console.print(line)
        console.print()


def _sentence(cut: Cut, shown: Shown, console: Console) -> Text:
    """The words, dropped ones struck out where the terminal can, between tildes where it cannot."""
    text = Text("  ")
    plain = not console.is_terminal or console.no_color
    for place, word in enumerate(spaced(shown.words)):
        if place in cut.kept:
            text.append(printable(word))
        elif plain:
            bare = word.strip()
            text.append(printable(word.replace(bare, f"~~{bare}~~") if bare else word))
        else:
            text.append(printable(word), "dim strike")
    return text


def _grid(cut: Cut, shown: Shown, console: Console) -> Iterator[Text]:
    if shown.grid is None or shown.grid[2] > min(WIDEST_GRID, console.width - 4):
        return
    signs = UNICODE if is_unicode(console) else ASCII
    moments, rows, columns = shown.grid
    for moment in range(moments):
        if moments > 1:
            yield Text(f"    moment {moment + 1}", "dim")
        for row in range(rows):
            start = (moment * rows + row) * columns
            yield Text("    " + "".join(signs[p not in cut.kept] for p in shown.cells[start : start + columns]))
