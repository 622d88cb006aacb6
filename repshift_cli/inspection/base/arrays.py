"""Arrays that name their axes, from nested lists."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from repshift_cli.records.inspection import Axis, Quantity

CORRELATION: dict[str, Any] = {"unit": "", "low": -1.0, "high": 1.0}
SHARE: dict[str, Any] = {"unit": "", "low": 0.0, "high": 1.0}


def blocks(depth: int) -> Axis:
    """The blocks of a model, from 1."""
    return Axis("block", tuple(str(n) for n in range(1, depth + 1)))


def axis(name: str, ticks: Iterable[Any]) -> Axis:
    """An axis with these places."""
    return Axis(name, tuple(map(str, ticks)))


def quantity(
    name: str,
    label: str,
    description: str,
    axes: Sequence[Axis],
    values: Any,
    unit: str = "",
    view: str = "table",
    low: float | None = None,
    high: float | None = None,
    missing: str | None = None,
    words: dict[str, str] | None = None,
) -> Quantity:
    """A `Quantity` of nested lists or a tensor, the first axis outermost; what is not finite is None."""
    flat = tuple(_flat(values))
    return Quantity(name, label, unit, description, tuple(axes), flat, view, low, high, missing, words or {})


def _flat(values: Any) -> Iterable[float | None]:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _flat(value)
    else:
        yield None if values is None or not math.isfinite(values) else float(values)


def spans(numbers: Sequence[int]) -> str:
    """Whole numbers as they are written: 1 to 4, 7, 9 to 12."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
