"""The columns that are no metric: which case a row is, what it ran on, how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from repshift_cli.records import METHODS_WITHOUT_PRUNING, Case, Record
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, Cell, Column
from repshift_cli.renderers.sheets.order import LAST, rank_of

KERNEL = "kernel"

Field = tuple[str, int, Callable[[Case], object], Callable[[Case], str]]
FIELDS: tuple[Field, ...] = (
    ("keep", rank_of("keep"), lambda c: c.keep, lambda c: f"{c.keep:g}"),
    ("layers", rank_of("layers"), lambda c: c.layers, lambda c: ",".join(map(str, c.layers))),
    ("operation", ALWAYS, lambda c: c.operation, lambda c: c.operation or MISSING),
    ("distance", ALWAYS, lambda c: c.distance, lambda c: c.distance or MISSING),
    ("form", ALWAYS, lambda c: c.form, lambda c: c.form or MISSING),
    ("removal", ALWAYS, lambda c: c.removal, lambda c: c.removal or MISSING),
)


def is_pruned(case: Case) -> bool:
    return case.pruning != METHODS_WITHOUT_PRUNING


def varies(field: Field, cases: Sequence[Case]) -> bool:
    return len({field[2](case) for case in cases if is_pruned(case)} - {None}) > 1


def execution_varies(cases: Sequence[Case]) -> bool:
    return len({case.execution for case in cases}) > 1


def case_columns(records: Sequence[Record]) -> list[Column]:
    cases = [record.case for record in records]
    columns = [Column("variant", ALWAYS, tuple(Cell(case.variant) for case in cases))]
    for field in FIELDS:
        name, rank, _, text = field
        own = varies(field, cases)
        if own or (rank and any(map(is_pruned, cases))):
            cells = tuple(Cell(text(case) if is_pruned(case) else MISSING) for case in cases)
            columns.append(Column(name, ALWAYS if own else rank, cells, numeric=name == "keep"))
    if any(record.tokens for record in records):
        tokens = tuple(Cell(" → ".join(map(str, record.tokens)) or MISSING) for record in records)
        columns.append(Column("tokens", rank_of("tokens"), tokens))
    if execution_varies(cases):
        columns.append(Column("execution", ALWAYS, tuple(Cell(case.execution) for case in cases)))
    return columns


def closing_columns(records: Sequence[Record]) -> list[Column]:
    columns = []
    if any(record.kernel for record in records):
        kernels = tuple(Cell(short_kernel(record.kernel) or MISSING) for record in records)
        columns.append(Column(KERNEL, LAST, kernels))
    if any(record.status != "ok" for record in records):
        cells = tuple(Cell(record.status, record.status) for record in records)
        columns.append(Column("status", ALWAYS, cells))
    return columns


def short_kernel(name: str | None) -> str:
    """A kernel's name without the prefix that all of torch's attention operators share; JSON and CSV have it whole."""
    return (name or "").removeprefix("aten::").removeprefix("_scaled_dot_product_")
