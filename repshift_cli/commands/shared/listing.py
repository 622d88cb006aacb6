"""What the listing commands share: why a part cannot be used, and a table of names and lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from repshift_cli.records import one_line
from repshift_cli.registry import Part, load

LEAST_WIDTH = 24
"""Of a second column."""

Row = tuple[str, str, str | None]
"""A name, what there is to say about it, and why it cannot be used here, or None."""


def loaded(part: Part, unavailable: Callable[[Any], str | None] = lambda module: None) -> tuple[Any, str | None]:
    """The imported part, or None, and why it cannot be used, or None; `unavailable` asks the part itself."""
    try:
        module = load(part)
        return module, unavailable(module)
    except Exception as error:
        return None, one_line(error)


def show_rows(rows: Iterable[Row], footer: str) -> None:
    """Two columns, the reason for what is not here on a line of its own, and a line on how to use it all.

    Where a terminal has no room for the second column, it stands below the first.
    """
    from rich.console import Console, Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console, told = Console(highlight=False), list(rows)
    stacked = max(len(name) for name, *_ in told) + LEAST_WIDTH > console.width
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=not stacked, style="bold", overflow="fold")
    table.add_column(overflow="fold")
    for name, text, reason in told:
        line = Text(text, style="not bold dim" if reason else "not bold")
        line = line.append(f"\nnot here: {reason}", style="yellow") if reason else line
        title = Text(name)
        cells = (Group(title, Padding(line, (0, 0, 0, 2))),) if stacked else (title, line)
        table.add_row(*cells)
    console.print(table)
    console.print(Text(footer, style="dim"))
