"""`repshift doctor`: what this machine has and can measure."""

from __future__ import annotations

STATES = {True: ("yes", "green"), False: ("no", "yellow"), None: ("?", "yellow")}


def doctor() -> None:
    """Say what this machine has, and how to get what it lacks."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from repshift_cli import machine

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in machine.checks():
        state = Text(*STATES[check.ok])
        table.add_row(check.name, state, Text(check.detail).append(f"; {check.remedy}" if check.remedy else "", "dim"))
    Console(highlight=False).print(table)
