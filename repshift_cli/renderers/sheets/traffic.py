"""Which operators and which blocks move the modelled bytes, one paragraph per case."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from rich.console import Console
from rich.text import Text

from repshift_cli.records import Run, printable_line
from repshift_cli.records.labels import labels
from repshift_cli.renderers.sheets.cells import scale
from repshift_cli.renderers.sheets.metric_columns import ordered_records
from repshift_cli.renderers.table import _hanging

MOST_OPERATORS = 8


def render(run: Run, console: Console) -> None:
    """Print the parts of every measurement that has any: the modelled bytes of each case."""
    told = False
    for record, split in ((r, m) for r in ordered_records(run) for m in r.measurements if m.parts and any(m.samples)):
        told = True
        total = split.samples[0]
        case = record.case
        names = labels(r.case for r in run.records if r.case.group == case.group)
        name = f"{case.model} · batch {case.batch} · {names[case]}"
        console.print(Text(printable_line(f"{name}: {_bytes(total)} modelled (cold cache)"), "bold"))
        for kind, parts in split.parts.items():
            lines = _operators(parts, total) if kind == "operator" else _blocks(parts)
            console.print(_hanging(printable_line(f"by {kind}: {', '.join(lines)}")))
    if not told:
        console.print("no case of this run was modelled (its file is older than schema 2, or --hbm off)")


def _operators(parts: Mapping[str, float], total: float) -> Iterator[str]:
    """The operators that move most, with their share; the rest as one."""
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    shown = ordered[:MOST_OPERATORS]
    for name, moved in shown:
        yield f"{name.removeprefix('aten.')} {_bytes(moved)} ({moved / total:.0%})"
    if rest := ordered[MOST_OPERATORS:]:
        moved = sum(m for _, m in rest)
        yield f"{len(rest)} others {_bytes(moved)} ({moved / total:.0%})"


def _blocks(parts: Mapping[str, float]) -> Iterator[str]:
    """The blocks in their order, neighbours that move the same as one: `4–12 1.20 MiB each`."""
    for moved, run_of in groupby(parts.items(), key=lambda item: item[1]):
        names = [name for name, _ in run_of]
        yield f"{names[0]} {_bytes(moved)}" if len(names) == 1 else f"{names[0]}–{names[-1]} {_bytes(moved)} each"


def _bytes(value: float) -> str:
    unit, factor = scale("B", [value])
    return f"{value / factor:.3g} {unit}" if value / factor < 1000 else f"{value / factor:.0f} {unit}"
