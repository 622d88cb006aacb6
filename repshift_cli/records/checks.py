"""What a record from a file must hold to be trusted afterwards: each check says what is wrong, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from repshift_cli.records.case import METHODS_WITHOUT_PRUNING, Case, keep_text
from repshift_cli.records.inspection import Answer, Quantity, quantity_fault
from repshift_cli.records.profile import Breakdown
from repshift_cli.records.run import Measurement, Record
from repshift_cli.records.text import visible

LARGEST_WHOLE = 2**63
LARGEST = 1e30
"""No quantity here comes near: bytes and MACs stay below 1e20, and squares and sums of these still fit a float."""
STATUSES = ("ok", "skipped", "failed")
SHARES = ("wilson", "tango")
"""Statistics of right and wrong answers: 100 or 0 for each sample, or the difference of two such."""
STATISTICS = ("median", "inverse-median", "hodges-lehmann", *SHARES, "mean", "bootstrap", "value", "geomean")


def leaf(value: Any, where: str) -> Any:
    """A value without records in it: text made visible, a number that is one; ValueError names the place otherwise."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [leaf(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, dict):
        return {visible(k): leaf(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, int) and abs(value) >= LARGEST_WHOLE:
        raise ValueError(f"{where}: a whole number of {value.bit_length()} bits")
    if isinstance(value, float) and not abs(value) <= LARGEST:
        raise ValueError(f"{where}: {value} is no quantity")
    return value


def _case(case: Case) -> str | None:
    if not all(0 < share <= 1 for share in (case.keep if isinstance(case.keep, tuple) else (case.keep,))):
        return f"keep {keep_text(case.keep)} is outside (0, 1]"
    if isinstance(case.keep, tuple) and len(case.keep) != len(case.layers):
        return f"{len(case.keep)} shares to keep for {len(case.layers)} layers"
    if case.batch < 1:
        return f"batch {case.batch} is below 1"
    if list(case.layers) != sorted({layer for layer in case.layers if layer > 0}):
        return "layers do not go up from 1"
    if case.pruning != METHODS_WITHOUT_PRUNING and not case.layers:
        return f"{case.pruning} without layers"
    return None


def _measurement(m: Measurement) -> str | None:
    if m.statistic not in STATISTICS:
        return f"unknown statistic {m.statistic!r}"
    if m.per_round < 1:
        return f"{m.per_round} samples per round"
    if (m.statistic == "hodges-lehmann" or m.unit == "ms") and any(sample <= 0 for sample in m.samples):
        return "a time or a ratio that is not above 0"
    if m.statistic in SHARES and any(abs(sample) > 100 for sample in m.samples):
        return "a share of more than 100%"
    return None


def _record(record: Record) -> str | None:
    return _outcome(record.status, record.tokens, record.case)


def _breakdown(breakdown: Breakdown) -> str | None:
    return _outcome(breakdown.status, breakdown.tokens, breakdown.case)


def _answer(answer: Answer) -> str | None:
    return None if answer.status in STATUSES else f"unknown status {answer.status!r}"


def _outcome(status: str, tokens: tuple[int, ...], case: Case | None) -> str | None:
    if status not in STATUSES:
        return f"unknown status {status!r}"
    if any(count < 1 for count in tokens):
        return "token counts below 1"
    if tokens and case is not None and case.layers and len(tokens) != len(case.layers) + 1:
        return f"{len(tokens)} token counts for {len(case.layers)} layers"
    return None


CHECKS: dict[type, Callable[[Any], str | None]] = {
    Case: _case,
    Measurement: _measurement,
    Record: _record,
    Breakdown: _breakdown,
    Answer: _answer,
    Quantity: quantity_fault,
}
