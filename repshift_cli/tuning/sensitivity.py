"""One cut at one block at a time: where the model minds losing tokens, by which score and with which sign."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product

import numpy as np

from repshift_cli.evaluation.tasks import NotFinite
from repshift_cli.records import CaseBroken, Value
from repshift_cli.records.tuning import Single
from repshift_cli.sweep.plan import Planned
from repshift_cli.tuning.order import STEP
from repshift_cli.tuning.space import Candidate, Space, candidate

LEFT = ("distance", "form")
MOST_LAYERS = 4
"""Of so many of the blocks that mind least, schedules are put together."""


def keeps_of(space: Space) -> tuple[float, ...]:
    """Two keeps between the bounds: a harsh one and a mild one."""
    low, high = space.steps
    return tuple(dict.fromkeys(round(n * STEP, 4) for n in (low + (high - low) // 3, low + 2 * (high - low) // 3)))


def scores_alone(space: Space) -> Space:
    """The space without what makes of one score many: of distance and form only what was given as one."""
    choices = {
        method: {name: values for name, values in own.items() if name not in LEFT or len(values) == 1}
        for method, own in space.choices.items()
    }
    return replace(space, choices=choices)


def singles(space: Space, keeps: Sequence[float]) -> list[Candidate]:
    """Every block and keep, with every method and value of its options: each method's first, then each one's next."""
    scores = [list(_scores(space, method)) for method in space.methods]
    found = []
    for number in range(max(map(len, scores))):
        for method, own in zip(space.methods, scores, strict=True):
            for layer, keep, told in product(space.layers, keeps, own[number : number + 1]):
                found.append(candidate(method, {layer: (keep, told)}, {}))
    return list(dict.fromkeys(found))


def _scores(space: Space, method: str) -> Iterator[dict[str, Value]]:
    own = space.choices.get(method, {})
    for values in product(*own.values()):
        told: dict[str, Value] = {}
        for name, value in zip(own, values, strict=True):
            if not space.idle(name, told):
                told[name] = value
        yield told


def sensitivity(
    found: Sequence[Candidate], plan: Callable[[Candidate], Planned], losses: Callable[[Planned], np.ndarray]
) -> Iterator[Single | None]:
    """The loss of each of these single cuts; None of what the model refuses or breaks at."""
    for one in found:
        planned, made = plan(one), None
        if planned.refused is None and isinstance(one.keep, float):
            with contextlib.suppress(CaseBroken, NotFinite):
                made = Single(one.method, one.layers[0], one.keep, one.options, float(losses(planned).mean()))
        yield made


def greedy(known: Sequence[Single], space: Space) -> list[Candidate]:
    """Schedules of the single cuts that cost least: alone, in twos and in threes, each with its own best score.

    A block's cut is worth more the earlier it is, so of each method's the least loss per block behind it counts.
    """
    depth = max(space.layers) + 1

    def cost(single: Single) -> float:
        return single.loss / (depth - single.layer)

    def parted(single: Single) -> tuple[dict[str, Value], dict[str, Value]]:
        """What of the score may be its own at this layer, and what is the same at all."""
        own = {n: v for n, v in single.options if space.per_layer and n in space.apart}
        return own, {n: v for n, v in single.options if n not in own}

    seeds: list[Candidate] = []
    for method in space.methods:
        own = sorted((s for s in known if s.method == method), key=cost)
        best = {s.layer: s for s in reversed(own) if parted(s)[1] == parted(own[0])[1]}
        order = sorted(best.values(), key=cost)[:MOST_LAYERS]
        for count in range(1, min(space.cuts, len(order)) + 1):
            for some in combinations(order, count):
                cuts = {s.layer: (s.keep, parted(s)[0]) for s in some}
                seeds.append(candidate(method, cuts, parted(some[0])[1]))
    return seeds


def dressed(one: Candidate, known: Sequence[Single], space: Space) -> Candidate:
    """The schedule with the score that costs least at its layers, by those cuts; as it is where none was tried there.

    Where each layer has its own it is the least at each, else the one of the least sum.
    """
    tried: dict[tuple[tuple[str, Value], ...], dict[int, Single]] = {}
    for single in known:
        if single.method == one.method and single.layer in one.layers:
            tried.setdefault(single.options, {})[single.layer] = single
    whole = [own for own in tried.values() if len(own) == len(one.layers)]
    if not whole:
        return one
    best = min(whole, key=lambda own: sum(s.loss for s in own.values()))
    if space.per_layer:
        best = {layer: min((own[layer] for own in whole), key=lambda s: s.loss) for layer in one.layers}
    others = {n: v for n, v in best[one.layers[0]].options if n not in space.apart}
    cuts = {n: (1.0, {k: v for k, v in s.options if k in space.apart}) for n, s in best.items()}
    return replace(candidate(one.method, cuts, others), keep=one.keep)
