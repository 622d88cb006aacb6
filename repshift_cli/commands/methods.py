"""`repshift methods`: the pruning methods that a variant can name behind its back end."""

from __future__ import annotations

from repshift_cli.commands.shared.listing import Row, loaded, show_rows
from repshift_cli.registry import Part, parts


def methods() -> None:
    """List the pruning methods and the options each of them takes."""
    footer = "\nUse as --variant BACKEND+METHOD, like --variant flash+repshift; a back end alone prunes nothing."
    show_rows([_row(part) for part in parts("reduction").values()], footer)


def _row(part: Part) -> Row:
    options = ", ".join(f"--{name}" for name in part.constants.get("OPTIONS", ()))
    _, reason = loaded(part, "cpu")
    return part.name, part.help + (f"\ntakes {options}" if options else ""), reason
