"""What a search is asked for, as typed: the model and its inputs, what may be varied, and what is sought."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.evaluation.order import ONE
from repshift_cli.evaluation.order import Order as Evaluation
from repshift_cli.records import UsageError
from repshift_cli.sweep import axes
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.parsing import integers, numbers

METHODS = ("repshift", "norm")
CONTROLS = ("random", "stride")
"""Searched alike, so that a tuned method is held against tuned controls."""
BATCH = 4
LIMIT = 256
NAMES = 2
"""Version of how a trial names a candidate: a journal of another one cannot be gone on with."""
STEP = 0.05
"""Keeps are searched in steps of this."""


@dataclass(frozen=True)
class Goal:
    """The least loss at a speed-up of `target`, or the greatest speed at a loss up to `max_loss`; else the front."""

    target: float | None = None
    max_loss: float | None = None

    @property
    def front(self) -> bool:
        """Whether loss and speed are both sought."""
        return self.target is None and self.max_loss is None


@dataclass(frozen=True)
class Order:
    """`sweep` holds what is fixed: one model, one batch, the back end as its variant, options that were given.

    `layers` are the blocks that may be cut (empty: all but the last), `keep` the bounds of the share that stays at one
    cut, `cuts` the most cuts of a schedule. `task` is eval's; without one the loss is the divergence from the unpruned
    model. `limit` samples are drawn, half for the search, half for the confirmation.
    """

    sweep: Axes
    goal: Goal = Goal()
    methods: tuple[str, ...] = METHODS
    layers: tuple[int, ...] = ()
    keep: tuple[float, float] = (0.3, 0.95)
    cuts: int = 3
    per_layer: bool = False
    trials: int = 60
    budget: float | None = None
    data: str | None = None
    task: str | None = None
    split: str | None = None
    train: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    preprocess: str | None = None
    workers: int | None = None
    limit: int = LIMIT

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Order:
        """From options by name; UsageError names the one that cannot be."""
        known = set(axes.names()) - {"layers", "keep", "data", "budget", "per_layer"}
        fixed = {name: value for name, value in given.items() if name in known}
        sweep = Axes.from_options({"batch": BATCH, "variant": given.get("attention") or "flash"} | fixed)
        for name, values in {n: getattr(sweep, n) for n in (*ONE, "variant")}.items():
            if len(values) > 1:
                raise UsageError(f"--{name.replace('_', '-')} takes one value here: one model is tuned at a time")
        own = {f.name for f in dataclasses.fields(cls)} - {"sweep", "goal", "layers", "keep", "methods"}
        plain = {name: value for name, value in given.items() if name in own and value is not None}
        read = {name: parse(given[name]) for name, parse in _READ.items() if given.get(name) is not None}
        goal = Goal(read.pop("target", None), read.pop("max_loss", None))
        if goal.target is not None and goal.max_loss is not None:
            raise UsageError("--target and --max-loss: give one; the other is what is sought")
        if plain.get("task") and not plain.get("data"):
            raise UsageError("--task needs labelled data: name it by --data")
        return cls(sweep, goal, **plain, **read)

    @property
    def evaluation(self) -> Evaluation:
        """The same data and model as an evaluation asks for them."""
        assert self.data is not None
        shared = ("split", "train", "columns", "preprocess", "workers", "limit")
        return Evaluation(self.sweep, self.data, self.task or "", **{name: getattr(self, name) for name in shared})

    def identity(self) -> str:
        """All that a search to go on with must share."""
        told = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return repr({n: v for n, v in told.items() if n not in ("trials", "budget", "workers")} | {"names": NAMES})


def _target(text: str) -> float:
    try:
        value = float(text.removesuffix("x"))
    except ValueError:
        value = 0.0
    if not 1 < value < 1000:
        raise UsageError(f"--target {text}: a speed-up above 1 is needed, like 1.5x")
    return value


def _keep(text: str) -> tuple[float, float]:
    try:
        low, high = (numbers(end)[0] for end in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 < low <= high < 1:
        raise UsageError(f"--keep {text}: write the least and the most that may stay at a cut, like 0.3:0.95")
    return low, high


def _layers(texts: list[str]) -> tuple[int, ...]:
    try:
        found = sorted({n for text in texts for n in integers(text)})
    except ValueError as error:
        raise UsageError(f"--layers: {error}") from error
    if found[0] < 1:
        raise UsageError(f"--layers {found[0]} is below 1; layers count blocks from 1")
    return tuple(found)


def _methods(texts: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for text in texts for word in text.split(",") if word.strip()))


def _max_loss(value: float) -> float:
    if value < 0:
        raise UsageError(f"--max-loss {value:g} is below 0")
    return float(value)


_READ: dict[str, Any] = {
    "target": _target,
    "max_loss": _max_loss,
    "keep": _keep,
    "layers": _layers,
    "methods": _methods,
}
