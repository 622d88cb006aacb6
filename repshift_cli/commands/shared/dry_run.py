"""The list of cases that `bench --dry-run` prints."""

from __future__ import annotations

import sys

from rich.table import Table

from repshift_cli.records import Case, written
from repshift_cli.renderers.table import console_for
from repshift_cli.sweep.plan import Planned


def show_cases(planned: tuple[Planned, ...]) -> None:
    """Every case with its tokens, the refused ones with the reason, then the count."""
    console = console_for(sys.stdout)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("model", "variant", "keep", "layers", "tokens", "setting", ""):
        table.add_column(heading, overflow="fold")
    for p in planned:
        cut = (f"{p.case.keep:g}", ",".join(map(str, p.case.layers))) if p.case.layers else ("", "")
        tokens = " → ".join(map(str, p.tokens))
        table.add_row(
            p.case.model, p.case.variant, *cut, tokens, setting(p.case), f"refused: {p.refused}" if p.refused else ""
        )
    console.print(table)
    refused = sum(p.refused is not None for p in planned)
    count = len(planned) - refused
    console.print(f"{count} {'case' if count == 1 else 'cases'} to measure, {refused} refused")


def setting(case: Case) -> str:
    """What else tells cases apart, in a few words."""
    size = (f"{case.frames}×" if case.frames else "") + (f"{case.image_size} px" if case.image_size else "")
    size = size or (f"{case.length} tokens" if case.length else "")
    words = (
        size,
        f"batch {case.batch}",
        case.dtype,
        *(value if isinstance(value, str) else f"{name} {written(value)}" for name, value in case.options),
        case.removal,
        f"protect {case.protect}" if case.protect else None,
    )
    return " ".join([w for w in words if w] + [case.execution] * (case.execution != "eager"))
