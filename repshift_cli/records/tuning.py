"""What a search for a schedule has found, and how that held on samples that it had not seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from repshift_cli.records.case import Case, Value
from repshift_cli.records.run import Machine, Measurement

TUNING_SCHEMA_VERSION = 1
"""Version of the file of a search. History: 1 the first."""

FOUND, NOTHING, INTERRUPTED = "found", "nothing", "interrupted"
"""How a search ended: with a schedule that beats the controls, with none, or before it was confirmed."""

CHOSEN = "found"
"""The role of a schedule that the search recommends."""


@dataclass(frozen=True)
class Single:
    """One cut at one block: the mean loss on the calibration samples, `options` being those of the score."""

    method: str
    layer: int
    keep: float
    options: tuple[tuple[str, Value], ...] = field(metadata={"json": "object"})
    loss: float


@dataclass(frozen=True)
class Confirmed:
    """A schedule on the held-out samples, and timed.

    `role` says what it is there for: found, or what the found one is held against. `number` counts the schedules found,
    from 1; the others have that of the one they are held against. `calibration` is the mean loss that the search saw.
    `versus` is the paired difference in loss, the found one's less this one's: below 0 the found one is better.
    """

    role: str
    number: int
    case: Case
    tokens: tuple[int, ...]
    loss: Measurement
    calibration: float | None = None
    predicted: float | None = None
    latency: Measurement | None = None
    speedup: Measurement | None = None
    versus: Measurement | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Costs:
    """How well times were predicted: shares by which the model of `cases` timed ones misses each, fitted without it."""

    cases: int
    typical: float | None
    worst: float | None


@dataclass(frozen=True)
class Tuning:
    """A search with its outcome: `status` is found, nothing or interrupted, `sentence` says it in words.

    Of one cut at a time alone it is sensitivity. `options` are those of the command, `study` is the journal with which
    the search can be gone on with.
    """

    status: str
    sentence: str
    machine: Machine
    model: str
    attention: str
    data: str
    samples: tuple[int, int]
    loss: str
    unit: str
    goal: str
    trials: int
    seconds: float
    created: str
    tool: str
    singles: tuple[Single, ...] = ()
    confirmed: tuple[Confirmed, ...] = ()
    costs: Costs | None = None
    notes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    study: str | None = None
    kind: str = "tuning"
    schema: int = TUNING_SCHEMA_VERSION
