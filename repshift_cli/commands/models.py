"""`repshift models`: the model families and the names that --model takes."""

from __future__ import annotations

from repshift_cli.commands.shared.listing import Row, loaded, show_rows
from repshift_cli.registry import Part, family_aliases, parts

OPEN_NAMES = {"hf": "hf:NAME", "timm": "timm:NAME", "own": "package.module:function, or FILE.toml"}
"""What stands for the names of the families that take any."""


def models() -> None:
    """List the models that --model takes, by family."""
    footer = "\nUse as --model NAME, or several: --model vit_s,deit_s. Weights are random without --weights or hf:NAME."
    show_rows([_row(part) for part in parts("models").values()], footer)


def _row(part: Part) -> Row:
    names = ", ".join(family_aliases(part)) or OPEN_NAMES.get(part.name, "no names")
    _, reason = loaded(part)
    return part.name, f"{part.help}\n{names}", reason
