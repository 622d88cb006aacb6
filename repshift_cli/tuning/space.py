"""What is searched: candidates, and how a trial of Optuna names one. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from repshift_cli.records import Keep, UsageError, Value, keep_text
from repshift_cli.tuning.order import STEP

Cut = tuple[float, Mapping[str, Value]]
"""The share that stays, and what of the score may differ from layer to layer."""


@dataclass(frozen=True)
class Candidate:
    """A way to prune: hashable, printable."""

    method: str
    layers: tuple[int, ...]
    keep: Keep
    options: tuple[tuple[str, Value], ...] = ()
    protect: str | None = None

    @property
    def words(self) -> str:
        """`repshift keep 0.9,0.7 at 3,6 highest,lowest`, and what it protects."""
        told = [str(value) for _, value in self.options] + [f"protect {self.protect}"] * (self.protect is not None)
        return " ".join([self.method, f"keep {keep_text(self.keep)} at {','.join(map(str, self.layers))}", *told])


@dataclass(frozen=True)
class Space:
    """Methods, blocks that may be cut, bounds of keep, the most cuts, and by method the values of its options.

    `apart` are the options that may differ from layer to layer, as the keep may, where the search is `per_layer`; one
    has no meaning beside the values `unless` of others. `protects` is what may be protected beside the model's own
    tokens, first that nothing is.
    """

    methods: tuple[str, ...]
    layers: tuple[int, ...]
    keep: tuple[float, float]
    cuts: int
    per_layer: bool
    choices: Mapping[str, Mapping[str, tuple[Value, ...]]]
    protects: tuple[str | None, ...] = (None,)
    apart: frozenset[str] = frozenset()
    unless: Mapping[str, tuple[tuple[str, Value], ...]] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[int, int]:
        """The bounds of keep in steps."""
        low, high = math.ceil(self.keep[0] / STEP - 1e-9), math.floor(self.keep[1] / STEP + 1e-9)
        if low > high:
            raise UsageError(f"--keep: no multiple of {STEP:g} lies between {self.keep[0]:g} and {self.keep[1]:g}")
        return low, high

    def only(self, method: str) -> Space:
        """The same search for one method."""
        return replace(self, methods=(method,))

    def suggest(self, trial: Any) -> Candidate:
        """The candidate that a trial's parameters name; two cuts at one block are one."""
        method = trial.suggest_categorical("method", self.methods)
        own = self.choices.get(method, {})
        count = trial.suggest_int("cuts", 1, min(self.cuts, len(self.layers)))
        cuts: dict[int, Cut] = {}
        for i in range(count):
            place = trial.suggest_int(f"layer {i}", 0, len(self.layers) - 1)
            apart = i if self.per_layer else 0
            share = trial.suggest_int(f"keep {apart}", *self.steps)
            score = self._drawn(trial, {n: v for n, v in own.items() if n in self.apart}, f"{apart} {method}")
            cuts.setdefault(self.layers[place], (round(share * STEP, 4), score))
        others = self._drawn(trial, {n: v for n, v in own.items() if n not in self.apart}, method)
        protect = trial.suggest_categorical("protect", self.protects) if len(self.protects) > 1 else self.protects[0]
        return replace(candidate(method, cuts, others), protect=protect)

    def _drawn(self, trial: Any, own: Mapping[str, tuple[Value, ...]], where: str) -> dict[str, Value]:
        chosen: dict[str, Value] = {}
        for name, values in own.items():
            if not self.idle(name, chosen):
                chosen[name] = trial.suggest_categorical(f"{name} {where}", values)
        return chosen

    def idle(self, name: str, chosen: Mapping[str, Value]) -> bool:
        """Whether an option has no meaning beside these."""
        return bool(set(self.unless.get(name, ())) & set(chosen.items()))

    def parameters(self, found: Candidate) -> dict[str, Any]:
        """What names this candidate, as nearly as the space allows: to begin a search with it."""
        own, told = self.choices.get(found.method, {}), dict(found.options)
        count = min(len(found.layers), self.cuts, len(self.layers))
        keeps = found.keep if isinstance(found.keep, tuple) else (found.keep,) * count
        given: dict[str, Any] = {"method": found.method, "cuts": count}
        for i, layer in enumerate(found.layers[:count]):
            given[f"layer {i}"] = min(range(len(self.layers)), key=lambda n: abs(self.layers[n] - layer))
            given[f"keep {i}"] = min(max(round(keeps[i] / STEP), self.steps[0]), self.steps[1])
            for name in self.apart & own.keys():
                each = str(told.get(name, own[name][0])).split(",")
                value = each[i % len(each)]
                given[f"{name} {i} {found.method}"] = value if value in own[name] else own[name][0]
        for name in own.keys() - self.apart:
            given[f"{name} {found.method}"] = told[name] if told.get(name) in own[name] else own[name][0]
        if len(self.protects) > 1:
            given["protect"] = found.protect if found.protect in self.protects else self.protects[0]
        return given


def candidate(method: str, cuts: Mapping[int, Cut], others: Mapping[str, Value]) -> Candidate:
    """The candidate with these cuts by block and the options that are the same at all; what is alike is one value.

    What a cut does not say, because it has no meaning there, is as at another one.
    """
    layers = tuple(sorted(cuts))
    keeps = tuple(cuts[layer][0] for layer in layers)
    keep: Any = keeps[0] if len(set(keeps)) == 1 else keeps
    options = []
    for name in dict.fromkeys(name for layer in layers for name in cuts[layer][1]):
        known = [cuts[layer][1].get(name) for layer in layers]
        some = next(value for value in known if value is not None)
        told = [some if value is None else value for value in known]
        options.append((name, some if len(set(told)) == 1 else ",".join(map(str, told))))
    return Candidate(method, layers, keep, (*options, *others.items()))


def paper(depth: int, method: str = "repshift") -> list[Candidate]:
    """The published schedules, scaled to the depth: DeiT's keep 0.8 after blocks 1, 4, 7 of 12, UMT's after 1, 2, 3.

    (Choi et al. 2025, arXiv 2508.00367, Tables 2 and 5.)
    """
    scaled = [tuple(sorted({max(1, round(n * depth / 12)) for n in layers})) for layers in ((1, 4, 7), (1, 2, 3))]
    return [Candidate(method, layers, 0.8) for layers in dict.fromkeys(scaled)]


def uniform(depth: int, methods: tuple[str, ...], keep: tuple[float, float]) -> list[Candidate]:
    """One cut at a quarter of the depth, and one at each third."""
    quarter, thirds = (max(1, depth // 4),), tuple(sorted({max(1, depth * n // 4) for n in (1, 2, 3)}))
    middle = (keep[0] + keep[1]) / 2
    return [Candidate(m, layers, share) for m in methods for layers, share in ((quarter, middle), (thirds, keep[1]))]
