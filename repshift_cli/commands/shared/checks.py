"""What is checked of a sweep before anything is planned: names, paths, options that would be idle, its size."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repshift_cli import registry
from repshift_cli.commands.shared.options import Asked
from repshift_cli.records import UsageError
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.parsing import own_options

if TYPE_CHECKING:
    from repshift_cli.sweep.operators import OperatorAxes

VIEWS = ("part", "layer", "kernel", "op")
"""What the rows of a profile's tables can be."""


def with_full_names(sweep: Axes) -> Axes:
    """The sweep with its variants by their parts' own names, every name and path checked: no import here takes time."""
    for name in sweep.model:
        registry.resolve_model(name)
    if sweep.weights is not None and len(sweep.model) > 1:
        raise UsageError("--weights fits one model; name one with --model")
    if sweep.data is not None and not Path(sweep.data).exists():
        raise UsageError(f"--data: no such file or folder: {sweep.data}")
    parts = [registry.find_variant(variant) for variant in sweep.variant]
    names = ["+".join(part.name for part in pair if part is not None) for pair in parts]
    return dataclasses.replace(sweep, variant=tuple(dict.fromkeys(names)))


def check_scoring(chosen: Mapping[str, Any], sweep: Axes) -> None:
    """UsageError where an option that only pruning has was given and no variant prunes."""
    own = own_options()
    idle = [name for name in ("keep", "remove", "layers", *own, "removal") if name in chosen]
    if idle and not any("+" in variant for variant in sweep.variant):
        raise UsageError(f"--{idle[0]} applies to pruning, and no variant prunes; add one like flash+repshift")
    methods = [registry.find_variant(variant)[1] for variant in sweep.variant]
    taken = {name for method in methods if method for name in registry.options_of(method)}
    for name in own:
        if name in chosen and name not in taken:
            raise UsageError(f"--{name} applies to methods that take it (`repshift methods`), and no variant has one")


def checked_sweep(asked: Asked) -> Axes:
    """The sweep that was asked for, every name in it checked, its variants by their parts' own names."""
    sweep = with_full_names(asked.sweep())
    check_scoring(asked.given, sweep)
    return sweep


def check_size(sweep: Axes | OperatorAxes, most: int) -> None:
    """UsageError for a sweep of more than `most` cases, `sweep.variant` being full names; none of them is made."""
    if not isinstance(sweep, Axes):
        return
    from repshift_cli.sweep.plan import most_cells

    methods = [method for _, method in map(registry.find_variant, sweep.variant) if method]
    count = most_cells(sweep, {method.name: registry.options_of(method) for method in methods})
    if count > most:
        raise UsageError(f"this is a sweep of up to {count:,} cases; give fewer values, or --max-cases {count}")


def check_view(by: str) -> None:
    """UsageError for an unknown view of a profile."""
    if by not in VIEWS:
        raise UsageError(f"--by: unknown view {by!r}; choose from {', '.join(VIEWS)}")
