"""The columns that are no metric: which case a row is, what it ran on, how it ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from repshift_cli.records import METHODS_WITHOUT_PRUNING, OPERATORS, Case, Record, keep_text, option_order, written
from repshift_cli.renderers.sheets.cells import ALWAYS, MISSING, Cell, Column
from repshift_cli.renderers.sheets.order import LAST, rank_of

KERNEL = "kernel"


@dataclass(frozen=True)
class Field:
    """What a pruned row is told apart by: a field of its case, or an option of its method (`optional`)."""

    name: str
    rank: int
    value: Callable[[Case], Any]
    text: Callable[[Any], str] = written
    optional: bool = False

    def told(self, case: Case) -> str:
        """The value in words; a dash where the case has none."""
        value = self.value(case)
        return MISSING if value is None else self.text(value)


def fields_of(cases: Sequence[Case]) -> tuple[Field, ...]:
    """The fields of these cases, the options of their methods among them."""
    if cases and cases[0].model == OPERATORS:
        return (Field("keep", rank_of("keep"), lambda c: c.keep, keep_text),)
    options = option_order(name for case in cases for name, _ in case.options)
    return (
        Field("keep", rank_of("keep"), lambda c: c.keep, keep_text),
        Field("layers", rank_of("layers"), lambda c: c.layers, lambda layers: ",".join(map(str, layers))),
        *(Field(name, ALWAYS, methodcaller("option", name), optional=True) for name in options),
        Field("removal", ALWAYS, lambda c: c.removal),
        Field("remove", ALWAYS, lambda c: c.remove),
    )


def is_pruned(case: Case) -> bool:
    return case.pruning != METHODS_WITHOUT_PRUNING


def varies(field: Field, cases: Sequence[Case]) -> bool:
    """Whether it tells rows apart; an option that differs between methods only tells none, for their names do."""
    values: dict[str, set[Any]] = defaultdict(set)
    for case in filter(is_pruned, cases):
        values[case.pruning if field.optional else ""].add(field.value(case))
    return any(len(found - {None}) > 1 for found in values.values())


def execution_varies(cases: Sequence[Case]) -> bool:
    return len({case.execution for case in cases}) > 1


def case_columns(records: Sequence[Record]) -> list[Column]:
    cases = [record.case for record in records]
    columns = [Column("variant", ALWAYS, tuple(Cell(case.variant) for case in cases))]
    for field in fields_of(cases):
        own = varies(field, cases)
        if own or (field.rank and any(map(is_pruned, cases))):
            cells = tuple(Cell(field.told(case) if is_pruned(case) else MISSING) for case in cases)
            numeric = any(isinstance(field.value(case), (int, float)) for case in cases)
            columns.append(Column(field.name, ALWAYS if own else field.rank, cells, numeric))
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
