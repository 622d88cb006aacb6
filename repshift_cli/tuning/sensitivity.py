"""One cut at one block at a time: where the model minds losing tokens, by which score and with which sign."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np

from repshift_cli.evaluation.tasks import NotFinite
from repshift_cli.records import CaseBroken
from repshift_cli.records.tuning import Single
from repshift_cli.sweep.plan import Planned
from repshift_cli.tuning.order import STEP
from repshift_cli.tuning.space import SIGN, Candidate, Space, candidate

MOST_LAYERS = 4
"""Of so many of the blocks that mind least, schedules are put together."""


def keeps_of(space: Space) -> tuple[float, ...]:
    """Two keeps between the bounds: a harsh one and a mild one."""
    low, high = space.steps
    return tuple(dict.fromkeys(round(n * STEP, 4) for n in (low + (high - low) // 3, low + 2 * (high - low) // 3)))


def singles(space: Space, keeps: Sequence[float]) -> Iterator[Candidate]:
    """Every block, keep, method and value of its options."""
    for method, layer, keep in product(space.methods, space.layers, keeps):
        own = space.choices.get(method, {})
        for values in product(*own.values()):
            told = dict(zip(own, values, strict=True))
            sign = told.pop(SIGN, "")
            yield candidate(method, {layer: (keep, sign)}, list(told.items()))


def sensitivity(
    found: Sequence[Candidate],
    plan: Callable[[Candidate], Planned],
    losses: Callable[[Planned], np.ndarray],
    told: Callable[[int], None],
) -> list[Single]:
    """The loss of each of these single cuts; what the model refuses or breaks at is left out."""
    made = []
    for number, one in enumerate(found, start=1):
        planned = plan(one)
        if planned.refused is None and isinstance(one.keep, float):
            with contextlib.suppress(CaseBroken, NotFinite):
                loss = float(losses(planned).mean())
                made.append(Single(one.method, one.layers[0], one.keep, one.options, loss))
        told(number)
    return made


def greedy(known: Sequence[Single], space: Space) -> list[Candidate]:
    """Schedules of the single cuts that cost least: alone, in twos and in threes, each with its own best sign.

    A block's cut is worth more the earlier it is, so of each method's the least loss per block behind it counts.
    """
    seeds: list[Candidate] = []
    depth = max(space.layers) + 1
    for method in space.methods:
        own = sorted((s for s in known if s.method == method), key=lambda s: s.loss / (depth - s.layer))
        if not own:
            continue
        options = [(n, v) for n, v in own[0].options if n != SIGN]
        alike = [s for s in own if [(n, v) for n, v in s.options if n != SIGN] == options]
        best = {s.layer: s for s in reversed(alike)}
        order = sorted(best.values(), key=lambda s: s.loss / (depth - s.layer))[:MOST_LAYERS]
        for count in range(1, min(space.cuts, len(order)) + 1):
            for some in combinations(order, count):
                cuts = {s.layer: (s.keep, dict(s.options).get(SIGN, "")) for s in some}
                seeds.append(candidate(method, cuts, options))
    return seeds
