"""`--operator` of a command that is about models: its options, and its cells, by the operators' own plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from repshift_cli.commands.shared.options import Asked
from repshift_cli.records import METHODS_WITHOUT_PRUNING, UsageError
from repshift_cli.sweep.operators import OperatorAxes
from repshift_cli.sweep.plan import Planned

PANEL = "Operators"
SHARED = ("tokens", "batch", "dtype", "device", "threads", "seed", "cuda_graph")
"""The options of a model's sweep that an operator has too."""


def _option(kind: Any, text: str, *names: str, metavar: str | None = "LIST") -> Any:
    return Annotated[kind | None, typer.Option(*names, metavar=metavar, help=text, rich_help_panel=PANEL)]


Operator = _option(
    list[str],
    "Attention operators (`repshift operators --list`) on planted input, in the place of a model: sliding,flash. "
    "--tokens, --batch and --dtype apply.",
)
Heads = _option(list[str], "Query heads. (default: 4 on a CPU, 16 on CUDA)")
KvHeads = _option(list[str], "KV heads. (default: as many as query heads)")
HeadDim = _option(list[str], "Dims of a head. (default: 64)")
Window = _option(list[str], "Window of the sliding forms. (default: 256)")
Causal = _option(
    bool, "With a causal mask or without. (default: wherever each is defined)", "--causal/--no-causal", metavar=None
)


def operator_sweep(asked: Asked, own: Mapping[str, Any]) -> OperatorAxes | None:
    """The sweep over operators where they were asked for; UsageError for what belongs to models, or to them alone."""
    told = {name: value for name, value in own.items() if value is not None}
    if "operator" not in told:
        if told:
            raise UsageError(f"--{next(iter(told)).replace('_', '-')} goes with --operator")
        return None
    if foreign := [name for name in asked.names if name not in SHARED]:
        raise UsageError(f"--operator takes the place of a model: leave out --{foreign[0].replace('_', '-')}")
    return OperatorAxes.from_options({**asked.given, **told})


def named(axes: OperatorAxes, planned: tuple[Planned, ...]) -> tuple[Planned, ...]:
    """The cells of the operators that were named, without those that they would be compared with."""
    names = {name.replace("-", "_") for name in axes.operator}

    def is_named(one: Planned) -> bool:
        attention = one.case.attention
        return one.case.pruning == METHODS_WITHOUT_PRUNING and bool({attention, attention.partition(":")[0]} & names)

    return tuple(one for one in planned if is_named(one))
