"""Rival methods written from their papers' equations and their authors' code, in loops over one token at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repshift_cli import registry
from repshift_cli.kernels.sdpa import AttentionCall

EXACT = {"rtol": 0, "atol": 1e-10}
Row = list[float]


@dataclass(frozen=True)
class Tested:
    """A method, its options, and the options that a whole forward is compared under."""

    name: str
    variants: Sequence[Mapping[str, Any]] = ({},)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> Any:
        return registry.load(registry.find("reduction", self.name))


ON_OFF = ({"proportional": "on"}, {"proportional": "off"})
MAPS = ({"map": "rows"}, {"map": "dense"})
METHODS = {
    one.name: one
    for one in (
        Tested("tome", ON_OFF),
        Tested("evit", MAPS),
        Tested("pitome", ({"early": "all"}, {"early": "energy", "proportional": "on"}), {"margin": 0.75}),
        Tested("cls_attention", MAPS),
        Tested("column_attention", MAPS),
        Tested("vid_tldr", ({"map": "rows", "proportional": "on"}, {"map": "dense", "proportional": "off"})),
        Tested(
            "mctf",
            (
                {"ahead": "reuse", "proportional": "on", "map": "rows"},
                {"ahead": "again", "proportional": "on", "tau_sim": 2.0, "map": "dense"},
                {"ahead": "off", "proportional": "off", "tau_info": 1.0, "tau_size": 0.0},
            ),
            {"tau_sim": 1.0, "tau_info": 20.0, "tau_size": 40.0, "ahead": "reuse"},
        ),
        Tested("dart", ({}, {"pivots": 2})),
        Tested("divprune"),
        Tested("farthest_merge", ON_OFF),
    )
}


def dot(a: Row, b: Row) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: Row, b: Row) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def leaving(free: int, keep: float) -> int:
    """int(free * (1 - keep)), in thousandths."""
    return free * (1000 - round(1000 * keep)) // 1000


def heads(t: Tensor, sample: int) -> list[list[Row]]:
    return t[sample].tolist()  # type: ignore[no-any-return]


def mean_keys(call: AttentionCall, sample: int) -> list[Row]:
    """The mean over heads of every token's key."""
    keys = heads(call.key, sample)
    return [[math.fsum(c) / len(keys) for c in zip(*rows, strict=True)] for rows in zip(*keys, strict=True)]


def merged_pairs(
    metric: list[Row], r: int, prefix: int, score: Any = cosine
) -> tuple[list[int], list[int], dict[int, int]]:
    """ToMe: even tokens left, odd tokens, and which odd one each merged even one goes to; places in the sequence."""
    even, odd = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))
    best = {}
    for i in even:
        found = [(-math.inf if i < prefix or j < prefix else score(metric[i], metric[j]), j) for j in odd]
        best[i] = max(found, key=lambda pair: (pair[0], -pair[1]))
    ranked = sorted(even, key=lambda i: (-best[i][0], i))
    merged = {i: best[i][1] for i in ranked[:r]}
    left = ranked[r:]
    return sorted(left) if prefix else left, odd, merged


def merged_rows(
    rows: list[Row], sizes: Row, left: list[int], odd: list[int], merged: dict[int, int], prefix: int
) -> tuple[list[Row], Row]:
    """The weighted means, the protected tokens first."""
    order = [*range(prefix), *(i for i in (*left, *odd) if i >= prefix)]
    out, new = [], []
    for place in order:
        members = [place, *(i for i, j in merged.items() if j == place)]
        total = math.fsum(sizes[i] for i in members)
        out.append([math.fsum(sizes[i] * rows[i][c] for i in members) / total for c in range(len(rows[0]))])
        new.append(total)
    return out, new


def attention_maps(call: AttentionCall, b: int, sizes: Row | None = None) -> list[list[Row]]:
    """softmax(q k^T / sqrt(d) + log size) of every head, without mask."""
    q, k = call.query[b].tolist(), call.key[b].tolist()
    factor = call.scale or 1 / math.sqrt(len(q[0][0]))
    maps = []
    for head, queries in enumerate(q):
        keys = k[head * len(k) // len(q)]
        sized = list(zip(keys, sizes or [1.0] * len(keys), strict=True))
        weights = [[size * math.exp(factor * dot(row, key)) for key, size in sized] for row in queries]
        maps.append([[w / math.fsum(row) for w in row] for row in weights])
    return maps


def attention_map(call: AttentionCall, b: int, sizes: Row | None = None) -> list[Row]:
    """Their mean over heads."""
    maps = attention_maps(call, b, sizes)
    return [[math.fsum(m[i][j] for m in maps) / len(maps) for j in range(len(maps[0][0]))] for i in range(len(maps[0]))]


def ranked(scores: Row) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))


def at_end(rows: list[Row], scores: Row, prefix: int, keep: float) -> tuple[list[Row], None]:
    """The tokens of the highest scores (of those that may go), in order."""
    stay = sorted(ranked(scores)[: len(scores) - leaving(len(scores), keep)])
    return [*rows[:prefix], *(rows[prefix + i] for i in stay)], None


@dataclass(frozen=True)
class Asked:
    """One sample at one layer: its rows, its attention call and its sizes."""

    rows: list[Row]
    call: AttentionCall
    b: int
    sizes: Row
    prefix: int
    keep: float
    layer: int
    depth: int
    options: Mapping[str, Any]

    @property
    def leaving(self) -> int:
        return leaving(len(self.rows) - self.prefix, self.keep)


Left = tuple[list[Row], Row | None]


def tome(a: Asked) -> Left:
    left, odd, merged = merged_pairs(mean_keys(a.call, a.b), a.leaving, a.prefix)
    return merged_rows(a.rows, a.sizes, left, odd, merged, a.prefix)


def evit(a: Asked) -> Left:
    scores = attention_map(a.call, a.b)[0][a.prefix :]
    order = ranked(scores)
    stay, rest = order[: len(order) - a.leaving], order[len(order) - a.leaving :]
    width = range(len(a.rows[0]))
    fused = [math.fsum(scores[i] * a.rows[a.prefix + i][c] for i in rest) for c in width]
    return [*a.rows[: a.prefix], *(a.rows[a.prefix + i] for i in stay), fused], None


def pitome(a: Asked) -> Left:
    keys = mean_keys(a.call, a.b)[a.prefix :]
    free, margin = len(keys), 0.75 - 0.75 * (a.layer - 1) / a.depth
    energies = []
    for one in keys:
        above = [cosine(one, other) - margin for other in keys]
        energies.append(math.fsum(x if x > 0 else math.exp(x) - 1 for x in above) / free)
    order = ranked(energies)
    merged = {}
    if a.options["early"] == "all" and a.layer <= math.ceil(a.depth / 2):
        one, other = order[0::2], order[1::2]
        best = [max((cosine(keys[i], keys[j]), -n) for n, j in enumerate(other)) for i in one]
        edges = sorted(range(len(one)), key=lambda n: (-best[n][0], n))
        merged = {one[n]: other[-best[n][1]] for n in edges[: a.leaving]}
        left = [one[n] for n in edges[a.leaving :]]
    else:
        one, other, left = order[0 : 2 * a.leaving : 2], order[1 : 2 * a.leaving : 2], order[2 * a.leaving :]
        for i in one:
            merged[i] = max(other, key=lambda j: (cosine(keys[i], keys[j]), -other.index(j)))
    move = a.prefix
    there = {i + move: j + move for i, j in merged.items()}
    return merged_rows(a.rows, a.sizes, [i + move for i in left], [j + move for j in other], there, move)


def cls_attention(a: Asked) -> Left:
    return at_end(a.rows, attention_map(a.call, a.b)[0][a.prefix :], a.prefix, a.keep)


def column_attention(a: Asked) -> Left:
    columns = [math.fsum(column) / len(column) for column in zip(*attention_map(a.call, a.b), strict=True)]
    return at_end(a.rows, columns[a.prefix :], a.prefix, a.keep)


def vid_tldr(a: Asked) -> Left:
    s = [math.fsum(p * math.log(p) for p in row) for row in attention_map(a.call, a.b)][a.prefix :]
    s = [x - min(s) for x in s]
    s = [x / max(s) if max(s) else 0.0 for x in s]
    mean = math.fsum(s) / len(s)
    top = max(s) - mean
    weights = [0.0] * a.prefix + [(x - mean) / top if x > mean else 0.0 for x in s]
    left, odd, merged = merged_pairs(a.rows, a.leaving, a.prefix)
    sizes = [size * weights[i] if i in merged else size for i, size in enumerate(a.sizes)]
    return merged_rows(a.rows, sizes, left, odd, merged, a.prefix)


def mctf_groups(a: Asked) -> tuple[list[list[int]], Row]:
    """The tokens of every row that is left, and the weight of every token."""
    info = [math.fsum(c) / len(c) for c in zip(*attention_map(a.call, a.b, mctf_sizes(a)), strict=True)]
    places = range(len(a.rows))
    tau = a.options

    def w(i: int, j: int) -> float:
        alike = ((cosine(a.rows[i], a.rows[j]) + 1) / 2) ** (1 / tau["tau_sim"])
        worth = 1.0
        for values, t in ((info, tau["tau_info"]), (a.sizes, tau["tau_size"])):
            worth *= (min(values) ** 2 / (values[i] * values[j])) ** (1 / t) if t else 1
        return alike * worth

    def best(ones: list[int], others: list[int], count: int) -> tuple[dict[int, int], list[int]]:
        found = {i: max((w(i, j), -j) for j in others) for i in ones if i >= a.prefix}
        order = sorted(found, key=lambda i: (-found[i][0], i))
        return {i: -found[i][1] for i in order[:count]}, order[count:]

    even, odd = ([i for i in places[first::2] if i >= a.prefix] for first in (0, 1))
    once, left = best(even, odd, a.leaving // 2)
    twice, odd_left = best(odd, left, a.leaving - a.leaving // 2)
    left = sorted(left) if a.prefix else left
    ends = {**{j: i for j, i in twice.items()}, **{i: twice.get(j, j) for i, j in once.items()}}
    stay = [*range(a.prefix), *left, *odd_left]
    return [[i, *(j for j, end in ends.items() if end == i)] for i in stay], [
        x * s for x, s in zip(info, a.sizes, strict=True)
    ]


def mctf_sizes(a: Asked) -> Row | None:
    return a.sizes if a.options.get("proportional") == "on" else None


def weighted(rows: list[Row], groups: list[list[int]], weights: Row) -> list[Row]:
    """The weighted mean of the rows of every group."""
    totals = [math.fsum(weights[i] for i in group) for group in groups]
    width = range(len(rows[0]))
    return [
        [math.fsum(weights[i] * rows[i][c] for i in group) / total for c in width]
        for group, total in zip(groups, totals, strict=True)
    ]


def mctf(a: Asked) -> Left:
    groups, weights = mctf_groups(a)
    return weighted(a.rows, groups, weights), [math.fsum(a.sizes[i] for i in group) for group in groups]


def mctf_maps(a: Asked) -> list[list[Row]]:
    """The maps of every head that the block to come attends by: columns summed, rows averaged by the weights."""
    groups, weights = mctf_groups(a)
    return [
        weighted([[math.fsum(row[j] for j in group) for group in groups] for row in rows], groups, weights)
        for rows in attention_maps(a.call, a.b, mctf_sizes(a))
    ]


def dart(a: Asked) -> Left:
    keys, states = a.call.key[a.b].tolist(), a.rows[a.prefix :]
    norms = [math.fsum(abs(x) for head in keys for x in head[i]) for i in range(a.prefix, len(a.rows))]
    stay = len(states) - a.leaving
    pivots = ranked(norms)[: min(a.options.get("pivots", 4), stay)]
    taken, room = list(pivots), stay - len(pivots)
    for n, pivot in enumerate(pivots):
        share = room * (n + 1) // len(pivots) - room * n // len(pivots)
        rest = [i for i in range(len(states)) if i not in taken]
        taken += sorted(rest, key=lambda i: (cosine(states[i], states[pivot]), i))[:share]
    return at_end(a.rows, [float(i in taken) for i in range(len(states))], a.prefix, a.keep)


def divprune(a: Asked) -> Left:
    states = a.rows[a.prefix :]
    every = range(len(states))
    apart = [[1 - cosine(states[i], states[j]) for j in every] for i in every]
    taken: list[int] = []
    for _ in range(len(states) - a.leaving):
        others = [[j for j in (taken or every) if j != i] for i in every]
        nearest = {i: min(apart[i][j] for j in others[i]) for i in every if i not in taken}
        taken.append(max(nearest, key=lambda i: (nearest[i], -i)))
    return at_end(a.rows, [float(i in taken) for i in every], a.prefix, a.keep)


def farthest_merge(a: Asked) -> Left:
    states = a.rows[a.prefix :]
    taken = [0]
    while len(taken) < len(states) - a.leaving:
        nearest = {
            i: max(0.0, *(cosine(states[i], states[j]) for j in taken)) for i in range(len(states)) if i not in taken
        }
        taken.append(min(nearest, key=lambda i: (nearest[i], i)))
    kept = sorted(taken)
    into = {i: max(kept, key=lambda j: (cosine(states[i], states[j]), -j)) for i in range(len(states)) if i not in kept}
    groups = [[i] for i in range(a.prefix)]
    groups += [[a.prefix + k, *(a.prefix + i for i, j in into.items() if j == k)] for k in kept]
    return weighted(a.rows, groups, a.sizes), [math.fsum(a.sizes[i] for i in group) for group in groups]


LOOPS = {name: globals()[name] for name in METHODS}


def asked_each(x: Tensor, call: AttentionCall, sizes: list[Row], *of: Any) -> list[Asked]:
    """Every sample by itself."""
    return [Asked(x[b].tolist(), call, b, sizes[b], *of) for b in range(len(x))]


def by_loops(
    name: str,
    x: Tensor,
    call: AttentionCall,
    sizes: list[Row] | None,
    prefix: int,
    keep: float,
    layer: int,
    depth: int,
    options: Mapping[str, Any],
) -> tuple[Tensor, list[Row] | None]:
    """The state reduced, sample by sample, and the new sizes."""
    before = sizes or [[1.0] * x.shape[1]] * len(x)
    found = [LOOPS[name](a) for a in asked_each(x, call, before, prefix, keep, layer, depth, options)]
    new = [sizes for _, sizes in found if sizes is not None]
    return torch.tensor([rows for rows, _ in found], dtype=x.dtype), new or None
