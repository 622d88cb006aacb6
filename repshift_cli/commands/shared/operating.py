"""`--operator` of a command that is about models: its options, and its cells, by the operators' own plan."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from repshift_cli.commands.shared.options import Asked
from repshift_cli.records import METHODS_WITHOUT_PRUNING, UsageError
from repshift_cli.sweep.operators import WARM, OperatorAxes
from repshift_cli.sweep.plan import Planned

PANEL = "Operators"
SHARED = ("tokens", "batch", "dtype", "device", "threads", "seed", "cuda_graph")
"""The options of a model's sweep that an operator has too."""


def _option(kind: Any, text: str, *names: str, metavar: str | None = "LIST") -> Any:
    return Annotated[kind | None, typer.Option(*names, metavar=metavar, help=text, rich_help_panel=PANEL)]


OPTIONS: dict[str, Any] = {
    "operator": _option(
        list[str],
        "Attention operators (`repshift operators --list`) on planted input, in the place of a model: sliding,flash. "
        "--tokens, --batch and --dtype apply.",
    ),
    "heads": _option(list[str], "Query heads. (default: 4 on a CPU, 16 on CUDA)"),
    "kv_heads": _option(list[str], "KV heads. (default: as many as query heads)"),
    "head_dim": _option(list[str], "Dims of a head. (default: 64)"),
    "window": _option(list[str], "Window of the sliding forms. (default: 256)"),
    "causal": _option(
        bool, "With a causal mask or without. (default: wherever each is defined)", "--causal/--no-causal", metavar=None
    ),
}
"""The options of operators alone."""


def are_asked(asked: Asked) -> bool:
    """Whether operators are asked for; UsageError for an option of theirs without them."""
    own = [name for name in OPTIONS if name in asked.given]
    if own and "operator" not in own:
        raise UsageError(f"--{own[0].replace('_', '-')} goes with --operator")
    return bool(own)


def without_parts(view: str) -> str:
    """The view of a profile that an operator has, which has no parts."""
    return "kernel" if view == "part" else view


def sweep_of(asked: Asked) -> OperatorAxes:
    """The sweep over operators; UsageError for what belongs to models."""
    if foreign := [name for name in asked.names if name not in (*OPTIONS, *SHARED)]:
        raise UsageError(f"--operator takes the place of a model: leave out --{foreign[0].replace('_', '-')}")
    return OperatorAxes.from_options({"cache": WARM, **asked.given})  # nothing empties it while steps are recorded


def named(axes: OperatorAxes, planned: tuple[Planned, ...]) -> tuple[Planned, ...]:
    """The cells of the operators that were named, without those that they would be compared with."""
    names = {name.replace("-", "_") for name in axes.operator}

    def is_named(one: Planned) -> bool:
        attention = one.case.attention
        return one.case.pruning == METHODS_WITHOUT_PRUNING and bool({attention, attention.partition(":")[0]} & names)

    return tuple(one for one in planned if is_named(one))
