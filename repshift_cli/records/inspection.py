"""What an inspection says of one model: per question, arrays that name their own axes.

An inspection file is one `Inspection` as JSON. Everything that is drawn of it (tables, CSV, heat maps) follows from the
arrays' own names, labels and units: whoever renders one needs to know no question.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

from repshift_cli.records.case import Case
from repshift_cli.records.run import Machine

INSPECTION_SCHEMA_VERSION = 1
"""Version of the inspection file. History: 1 the first."""

VIEWS = ("table", "map", "detail")


@dataclass(frozen=True)
class Axis:
    """One direction of an array: its name (`block`, `head`, `score`, `distance` ...) and what its places are called."""

    name: str
    ticks: tuple[str, ...]


@dataclass(frozen=True)
class Quantity:
    """An array with its meaning. `values` run along the last axis first; None where there is none, `missing` says why.

    `low` and `high` are the ends that the values can have (a correlation: -1 and 1), None where there is no end.
    `words` says what some values mean, by the value as it is written (`-1`), where a number says less.
    `view` says how it is meant to be seen: as columns of a `table` over its first axis, as a heat `map` of its last two
    axes, or as `detail` that only files hold.
    """

    name: str
    label: str
    unit: str
    description: str
    axes: tuple[Axis, ...]
    values: tuple[float | None, ...]
    view: str = "table"
    low: float | None = None
    high: float | None = None
    missing: str | None = None
    words: dict[str, str] = field(default_factory=dict)

    def items(self) -> Iterator[tuple[tuple[str, ...], float | None]]:
        """Each value with its place: one tick of every axis."""
        return zip(product(*(axis.ticks for axis in self.axes)), self.values, strict=True)


@dataclass(frozen=True)
class Answer:
    """What one question found: `ok`, `skipped` or `failed` with the reason. `settings` are the numbers that it took.

    `reading` are sentences that say what the values amount to, made from them.
    """

    question: str
    title: str
    status: str = "ok"
    reason: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    quantities: tuple[Quantity, ...] = ()
    reading: tuple[str, ...] = ()

    def quantity(self, name: str) -> Quantity:
        """The array of that name; KeyError where there is none."""
        return {q.name: q for q in self.quantities}[name]


@dataclass(frozen=True)
class Inspection:
    """One inspection file: where it ran, what was asked, of which case, and an answer for each question."""

    machine: Machine | None
    options: dict[str, Any]
    case: Case
    tokens: int
    inputs: int
    answers: tuple[Answer, ...]
    warnings: tuple[str, ...] = ()
    created: str = ""
    tool: str = ""
    kind: str = "inspection"
    schema: int = INSPECTION_SCHEMA_VERSION

    def answer(self, question: str) -> Answer:
        """The answer to that question; KeyError where it was not asked."""
        return {a.question: a for a in self.answers}[question]


def quantity_fault(q: Quantity) -> str | None:
    """What is wrong with an array from a file."""
    if q.view not in VIEWS:
        return f"unknown view {q.view!r}"
    places = prod(len(axis.ticks) for axis in q.axes)
    return None if len(q.values) == places else f"{len(q.values)} values for {places} places"
