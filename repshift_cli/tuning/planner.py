"""Candidates as cases, planned as a sweep plans them, with what the model refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from repshift_cli import registry
from repshift_cli.records import METHODS_WITHOUT_PRUNING, Facts, UsageError, Value
from repshift_cli.sweep import plan
from repshift_cli.sweep.plan import Backend, Planned
from repshift_cli.tuning.order import CONTROLS, Order
from repshift_cli.tuning.space import Candidate, Space

SEARCHED = ("operation", "distance", "form", "sign")
"""Options whose values are searched, where a method takes them and none was given."""
FIRST = ("first:1", "first:4")
"""What may be protected of a decoder's prompt, where nothing was said: its first tokens are often attention sinks."""
ROOM = 16
"""The fewest tokens of which so many may be protected."""


class Planner:
    """Makes cases of one model. `attention` names the back end, `given` what its cases say of their input."""

    def __init__(self, order: Order, device: str, facts: Facts, backend: Backend, given: str | None = None) -> None:
        self._order, self._device, self.facts, self._backend = order, device, facts, backend
        self._input = given
        names = dict.fromkeys((*order.methods, *CONTROLS, "repshift"))
        parts = {name: registry.find("reduction", name) for name in names}
        self.names = {part.name for part in parts.values()}
        self._offered = {part.name: registry.options_of(part) for part in parts.values()}
        self._traits = {part.name: plan.traits_of(part) for part in parts.values()}
        self._attention = order.sweep.variant[0].partition("+")[0]

    @property
    def unpruned(self) -> Planned:
        """The model as it is; UsageError where it cannot be run so."""
        (found,) = self._expanded(variant=(self._attention,))
        if found.refused is not None:
            raise UsageError(f"the unpruned model cannot be run: {found.refused}")
        return found

    def planned(self, candidate: Candidate, seed: int | None = None) -> Planned:
        """The candidate's case, refused where the model or the method says so; another `seed` draws otherwise."""
        found = _once(self, candidate)
        return found if seed is None else replace(found, case=replace(found.case, seed=seed))

    def space(self) -> Space:
        """What may be searched of this model."""
        order, depth = self._order, self.facts.depth
        layers = order.layers or tuple(range(1, depth))
        if layers[-1] > depth:
            raise UsageError(f"--layers {layers[-1]} is beyond the depth of the model, which has {depth} blocks")
        choices = {name: self._choices(name) for name in self._offered}
        methods = tuple(registry.find("reduction", name).name for name in order.methods)
        for name in methods:
            if name in CONTROLS:
                raise UsageError(f"--methods {name}: it is a control, and searched in any case")
        sinks = order.sweep.protect is None and self.facts.causal and self.facts.prefix <= 1
        sinks = sinks and self.facts.row and self.facts.tokens >= ROOM
        protects = (None, *FIRST) if sinks else (order.sweep.protect,)
        declared = {name: option for own in self._offered.values() for name, option in own.items()}
        apart = frozenset(name for name, option in declared.items() if option.per_layer)
        unless = {name: option.unless for name, option in declared.items()}
        return Space(methods, layers, order.keep, order.cuts, order.per_layer, choices, protects, apart, unless)

    def _choices(self, method: str) -> Mapping[str, tuple[Value, ...]]:
        given, offered = dict(self._order.sweep.options), self._offered[method]
        found: dict[str, tuple[Value, ...]] = {}
        for name in (n for n in SEARCHED if n in offered):
            values = self.facts.operations if name == "operation" else offered[name].choices
            found[name] = given.get(name) or tuple(values)
        return found | {n: v for n, v in given.items() if n in offered}

    def _expanded(self, **changes: Any) -> tuple[Planned, ...]:
        axes = replace(self._order.sweep, **{"options": (), **changes})
        backends = {self._attention: self._backend, "none": Backend(None)}
        found = plan.expand(axes, self._device, lambda *_: self.facts, backends, self._offered, self._traits)
        if self._input is None:
            return found
        return tuple(replace(p, case=replace(p.case, input=self._input)) for p in found)


@lru_cache(maxsize=4096)
def _once(planner: Planner, candidate: Candidate) -> Planned:
    found = planner._expanded(
        variant=(f"{planner._attention}+{candidate.method}",),
        keep=(candidate.keep,),
        layers=(candidate.layers,),
        per_layer=True,
        protect=candidate.protect or planner._order.sweep.protect,
        options=tuple((name, (value,)) for name, value in candidate.options),
    )
    (planned,) = (p for p in found if p.case.pruning != METHODS_WITHOUT_PRUNING)
    return planned
