"""Run files of older schemas brought to the present one, as JSON values: the one place that knows what they lacked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

DETAILS = 100
"""Up to schema 3 a measurement had a `rank`, and from this one on it was no column and, if timed, never judged."""


def upgraded(run: dict[str, Any]) -> dict[str, Any]:
    """The run with the flags of its measurements; what does not fit stays as it is, to be refused by whoever reads."""
    if isinstance(run["schema"], int) and run["schema"] < 4:
        for measurement in _measurements(run):
            _flag(measurement)
    return run


def _flag(measurement: dict[str, Any]) -> None:
    rank = measurement.pop("rank", 0)
    detail = isinstance(rank, int) and rank >= DETAILS
    measurement.setdefault("detail", detail)
    measurement.setdefault("gateable", not detail or measurement.get("statistic") == "value")
    measurement.setdefault("reference", str(measurement.get("reason")).startswith("reference"))


def _measurements(run: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for record in _dicts(run.get("records")):
        yield from _dicts(record.get("measurements"))


def _dicts(values: Any) -> Iterator[dict[str, Any]]:
    return (value for value in values if isinstance(value, dict)) if isinstance(values, list) else iter(())
