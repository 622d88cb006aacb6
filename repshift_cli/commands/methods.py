"""`repshift methods`: the pruning methods that a variant can name behind its back end."""

from __future__ import annotations

from repshift_cli.commands.shared.listing import Row, loaded, show_rows
from repshift_cli.records import Option, written
from repshift_cli.registry import Part, method_options, options_of, parts


def methods() -> None:
    """List the pruning methods. Then the options that belong to methods alone."""
    footer = "\nUse as --variant BACKEND+METHOD, like --variant flash+repshift; a back end alone prunes nothing."
    rows = [_row(part) for part in parts("reduction").values()]
    show_rows([*rows, *map(_option_row, method_options().values())], footer)


def _row(part: Part) -> Row:
    _, reason = loaded(part)
    taken = "" if reason else ", ".join(f"--{name.replace('_', '-')}" for name in options_of(part))
    return part.name, part.help + (f"\ntakes {taken}" if taken else ""), reason


def _option_row(option: Option) -> Row:
    ends = [f"{word} {end:g}" for word, end in (("from", option.least), ("to", option.most)) if end is not None]
    kind = f"one of {', '.join(map(written, option.choices))}" if option.choices else " ".join([option.type, *ends])
    return f"--{option.name.replace('_', '-')}", f"{option.text}\n{kind}; taken by {', '.join(option.methods)}", None
