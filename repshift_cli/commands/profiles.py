"""`repshift profiles`: the workload profiles that come with repshift."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from repshift_cli.commands.shared.completion import profile_names
from repshift_cli.commands.shared.listing import Row, show_rows
from repshift_cli.records import UsageError
from repshift_cli.sweep.profiles import load_profile, profile_path, shipped_profiles, sweep_of


def profiles(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Print this profile's file.", show_default=False, metavar="[NAME|FILE]", autocompletion=profile_names
        ),
    ] = None,
) -> None:
    """List the workload profiles, or print one."""
    if name is not None:
        load_profile(name)
        typer.echo(profile_path(name).read_text(encoding="utf-8"), nl=False)
        return
    footer = "\nUse as --profile NAME; options beside it go before the profile's. `repshift profiles NAME` prints one."
    show_rows([_row(name) for name in shipped_profiles()], footer)


def _row(name: str) -> Row:
    try:
        profile = load_profile(name)
    except UsageError as error:
        return name, "", str(error)
    return name, f"{profile['title']}\n{_in_words(asdict(sweep_of(profile, {})))}", None


def _in_words(axes: dict[str, Any]) -> str:
    """`3 axes: model 3, keep 2, variant 5`, of those that have several values."""
    several = [f"{key.replace('_', '-')} {len(v)}" for key, v in axes.items() if isinstance(v, tuple) and len(v) > 1]
    return f"{len(several)} {'axis' if len(several) == 1 else 'axes'}" + (f": {', '.join(several)}" if several else "")
