"""What the score sees: by block, the shift of the tokens beside their attention, norm and true importance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.arrays import CORRELATION, SHARE, axis, blocks, quantity, spans
from repshift_cli.inspection.base.blocks import own_attention, own_places, real_places, visiting
from repshift_cli.inspection.base.effects import measure_of, read_out
from repshift_cli.inspection.base.left_out import DRAWS, halves, importance, noise
from repshift_cli.inspection.base.ranks import FEWEST, lower_half_weight, mean, rank_correlation, told_sign, top_share
from repshift_cli.inspection.base.rows import causal, paid, received
from repshift_cli.inspection.base.shifts import EVEN, shifts
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import Subject
from repshift_cli.records.inspection import Answer, Quantity
from repshift_cli.reduction.engine.seen import Seen

RANK = 1
NORM, RECEIVED, READER, NEXT, IMPORTANCE = (
    "norm",
    "attention received",
    "reader's attention",
    "next block",
    "importance",
)
BESIDE = (IMPORTANCE, RECEIVED, READER, NORM, NEXT)
NONE = "one of the two is the same for all tokens, or was not seen"
QUANTILES = (5, 25, 50, 75, 95)
SIGNS = {"1": "highest", "-1": "lowest", "0": "neither"}


def unanswerable(look: Look) -> str | None:
    """A grid of a CNN has no tokens that could be left out alone."""
    if look.subject.grid:
        return "a grid has no tokens that could be left out one by one"
    return None if look.subject.tokens > 1 else "there are not two tokens that may go"


@dataclass
class Block:
    """One block on one input: `scores` (n,) of the tokens that may go, by name, and the `importance` (m,) of `some`."""

    scores: dict[str, Tensor] = field(default_factory=dict)
    beside: dict[str, Tensor] = field(default_factory=dict)
    importance: Tensor | None = None
    some: Tensor | None = None
    """Which of the n tokens were left out."""
    halves: tuple[float, float] | None = None
    """What dropping the half of the lower, and of the higher default score costs, over a random half."""


def answer(look: Look) -> Answer:
    """Every input seen once, then its tokens left out one by one after each block."""
    subject = look.subject
    what, found = "", []
    with look.active():
        for number, inputs in enumerate(look.inputs):
            seen, output = _seen(look, inputs)
            what = measure_of(subject, output)
            _leave_out(look, inputs, number, seen, read_out(subject, output), what)
            found.append(seen)
    names = list(found[0][0].scores)
    quantities = [
        *_signs(subject, found, names[0]),
        *_correlations(subject, found, names[0]),
        *_importance(subject, found, what),
        *_all(subject, found, names),
    ]
    settings = {"inputs": len(found), "left_out": look.settings.left_out, "score": names[0], "importance": what}
    return Answer(
        "score", "What the score sees", settings=settings, quantities=tuple(quantities), reading=_read(quantities)
    )


# --- one input --------------------------------------------------------------------------------------------------------


def _seen(look: Look, inputs: Any) -> tuple[list[Block], Any]:
    """Every block of one input, and the model's output."""
    subject = look.subject
    own, real = own_places(subject, inputs), real_places(subject, inputs)
    found = [Block() for _ in subject.sites]

    def visit(layer: int, seen: Seen) -> None:
        held = found[layer - 1]
        held.scores = {name: score[0, own].double().cpu() for name, score in shifts(look, layer, seen)}
        held.beside[NORM] = seen["resid_post"][0, own].double().norm(dim=-1).cpu()

    def hear(layer: int, call: AttentionCall) -> None:
        if not own_attention(call, len(real)):
            return
        forward_only = causal(call)
        reader = int(real.nonzero()[-1]) if forward_only else 0
        held = found[layer - 1].beside
        held[RECEIVED] = received(call, real.to(call.query.device))[0].mean(0)[own].double().cpu()
        if forward_only or subject.prefix or subject.marked:
            held[READER] = paid(call, reader)[0, own].double().cpu()

    with visiting(subject, visit, hear):
        output = look.run(inputs)
    for here, after in pairwise(found):
        here.beside[NEXT] = next(iter(after.scores.values()))
    return found, output


def _leave_out(look: Look, inputs: Any, number: int, found: Sequence[Block], reference: Tensor, what: str) -> None:
    own = own_places(look.subject, inputs)
    if len(own) < FEWEST:
        return
    floor = noise(look, inputs, look.settings.left_out, reference, what)
    draw = torch.Generator().manual_seed(look.settings.seed + number)
    some = torch.randperm(len(own), generator=draw)[: look.settings.left_out].sort().values
    layers = look.settings.blocks or range(1, len(found) + 1)
    for done, layer in enumerate(layers):
        look.tell((number + done / len(layers)) / len(look.inputs))
        held = found[layer - 1]
        effect = importance(look, inputs, layer, own[some], reference, what)
        held.some, held.importance = some, effect.where(effect > floor, 0)
        if held.importance.any():
            held.halves = halves(look, inputs, layer, next(iter(held.scores.values())), draw, reference, what)


# --- all inputs -------------------------------------------------------------------------------------------------------

Found = Sequence[Sequence[Block]]
"""By input and block."""


def _with(found: Found, layer: int, score: str, other: str) -> list[float | None]:
    """The rank correlation of a block's score with another, input by input."""
    return [_correlation(blocks_of[layer], score, other) for blocks_of in found]


def _correlation(block: Block, score: str, other: str) -> float | None:
    one = block.scores.get(score, block.beside.get(score))
    if one is None or (other != IMPORTANCE and other not in block.beside):
        return None
    if other != IMPORTANCE:
        return rank_correlation(one, block.beside[other])
    return None if block.importance is None else rank_correlation(one[block.some], block.importance)


def _lower_half(found: Found, layer: int, score: str) -> float | None:
    """What the half with the lower score weighs of importance, 1 being a random half's."""
    values = []
    for block in (blocks_of[layer] for blocks_of in found):
        one = block.scores.get(score, block.beside.get(score))
        if one is not None and block.importance is not None:
            values.append(lower_half_weight(one[block.some], block.importance))
    return mean(values)


def _signs(subject: Subject, found: Found, score: str) -> Iterator[Quantity]:
    """Which sign the default score should have, block by block."""
    depth = blocks(len(subject.sites))
    layers = range(len(subject.sites))
    tokens = min((len(b.some) for blocks_of in found for b in blocks_of if b.some is not None), default=0)
    signs = [told_sign(_with(found, n, score, IMPORTANCE), tokens) for n in layers]
    asked = [any(blocks_of[n].importance is not None for blocks_of in found) for n in layers]
    yield quantity(
        "sign",
        "keep",
        "which shift to keep: the highest (1), the lowest (-1), or neither (0): the rank correlation with importance "
        "is not clear of 0 by two standard errors.",
        [depth],
        [sign if there else None for sign, there in zip(signs, asked, strict=True)],
        low=-1,
        high=1,
        words=SIGNS,
    )
    yield quantity(
        "dropped_importance",
        "lower half, one by one",
        "mean importance of the half of the tokens with the lower shift, over that of all: below 1 each of them costs "
        "less than a random token.",
        [depth],
        [_lower_half(found, n, score) for n in layers],
        "x",
        low=0,
    )
    yield quantity(
        "halves",
        "at once",
        f"what dropping the half with the lower (the higher) shift all at once costs, over the mean of {DRAWS} random "
        "halves: above 1 a random half is the better choice. Where one by one says less, costs do not add up.",
        [depth, axis("half", ("lower half", "higher half"))],
        [[mean([bs[n].halves[k] if bs[n].halves else None for bs in found]) for k in (0, 1)] for n in layers],  # type: ignore[index]
        "x",
        low=0,
    )


def _correlations(subject: Subject, found: Found, score: str) -> Iterator[Quantity]:
    """What the default score, and importance, go along with."""
    depth, layers = blocks(len(subject.sites)), range(len(subject.sites))
    yield quantity(
        "correlation",
        "shift ~",
        "Spearman's rank correlation, over tokens, of the shift with: importance, the change of the output when that "
        "token alone is left out after this block; the attention that the token receives; the attention which the "
        "token read out (the class token, or the last of a causal model) pays to it; the norm of its state; its own "
        "shift one block on.",
        [depth, axis("with", BESIDE)],
        [[mean(_with(found, n, score, other)) for other in BESIDE] for n in layers],
        missing=NONE,
        **CORRELATION,
    )
    yield quantity(
        "importance_correlation",
        "importance ~",
        "that of importance with norm and attention: where the shift follows one of them, its sign is that one's.",
        [depth, axis("with", (NORM, RECEIVED, READER))],
        [[mean(_with(found, n, other, IMPORTANCE)) for other in (NORM, RECEIVED, READER)] for n in layers],
        missing=NONE,
        **CORRELATION,
    )


def _importance(subject: Subject, found: Found, what: str) -> Iterator[Quantity]:
    """How much a token weighs, and how unevenly."""
    depth, layers = blocks(len(subject.sites)), range(len(subject.sites))
    held = [[b for b in (bs[n] for bs in found) if b.importance is not None] for n in layers]
    yield quantity(
        "importance",
        "importance",
        f"Mean over tokens: {what}, when one token is left out after this block.",
        [depth],
        [mean([float(b.importance.mean()) for b in bs if b.importance is not None]) for bs in held],
        view="detail",
    )
    yield quantity(
        "top_tenth",
        "top tenth's share",
        "share of all importance that the most important tenth of the tokens carries.",
        [depth],
        [mean([top_share(b.importance) for b in bs if b.importance is not None]) for bs in held],
        **SHARE,
    )


def _all(subject: Subject, found: Found, names: Sequence[str]) -> Iterator[Quantity]:
    """Every form of the score, and the norm beside them."""
    depth, scores = blocks(len(subject.sites)), axis("score", (*names, NORM))
    layers = range(len(subject.sites))
    yield quantity(
        "score_importance",
        "rank correlation with importance",
        "Spearman's rank correlation over tokens of each form of the shift with the token's importance; even norms: "
        "with all states scaled to their median length, so that no length tells.",
        [depth, scores],
        [[mean(_with(found, n, score, IMPORTANCE)) for score in scores.ticks] for n in layers],
        view="map",
        **CORRELATION,
    )
    yield quantity(
        "score_dropped_importance",
        "lower half, one by one",
        "As dropped_importance, for each form of the shift.",
        [depth, scores],
        [[_lower_half(found, n, score) for score in scores.ticks] for n in layers],
        "x",
        view="map",
        low=0,
    )
    yield quantity(
        "score_correlations",
        "rank correlation",
        "As correlation, for each form of the shift.",
        [depth, axis("score", names), axis("with", BESIDE)],
        [[[mean(_with(found, n, s, other)) for other in BESIDE] for s in names] for n in layers],
        view="detail",
        **CORRELATION,
    )
    yield quantity(
        "distribution",
        "quantiles of the shift",
        "Quantiles over the tokens of all inputs, for each form of the shift.",
        [depth, axis("score", names), axis("percent", QUANTILES)],
        [[_quantiles([bs[n].scores[s] for bs in found if s in bs[n].scores]) for s in names] for n in layers],
        view="detail",
    )


def _quantiles(scores: Sequence[Tensor]) -> list[float | None]:
    if not scores:
        return [None] * len(QUANTILES)
    values: list[float | None] = torch.cat(list(scores)).quantile(torch.tensor(QUANTILES).double() / 100).tolist()
    return values


def _read(quantities: Sequence[Quantity]) -> tuple[str, ...]:
    """Where which sign holds, and where the lower half costs less than a random one."""
    by_name = {q.name: q for q in quantities}
    signs = by_name["sign"].values
    lines = []
    for sign, words in SIGNS.items():
        there = [n for n, value in enumerate(signs, start=1) if value == float(sign)]
        if there:
            lines.append(f"keep {words}: after block {spans(there)}")
    if turned := _turned(by_name["score_importance"], signs):
        lines.append(
            f"with even norms the shift says the other: after block {spans(turned)}, so that its sign was theirs"
        )
    costs = [(value, n) for n, value in enumerate(by_name["dropped_importance"].values, start=1) if value is not None]
    if costs:
        least, most = min(costs), max(costs)
        lines.append(
            f"the tokens of the half with the lower shift weigh {least[0]:.2f}x as much as random ones after block "
            f"{least[1]} and {most[0]:.2f}x after block {most[1]}"
        )
    lower = dict(by_name["halves"].items())
    beaten = [int(place[0]) for place, v in lower.items() if place[1] == "lower half" and v is not None and v < 1]
    if any(v is not None for v in lower.values()):
        where = f"after block {spans(beaten)}" if beaten else "after no block"
        lines.append(f"at once, that half costs less than a random half {where}")
    return tuple(lines)


def _turned(forms: Quantity, signs: Sequence[float | None]) -> list[int]:
    """The blocks for which a sign is told that is the other where all states are as long."""
    found, named = dict(forms.items()), forms.axes[1].ticks
    if named[1] != named[0] + EVEN:
        return []
    even = [found[block, named[1]] for block in forms.axes[0].ticks]
    return [
        n for n, (sign, rho) in enumerate(zip(signs, even, strict=True), start=1) if sign and rho and sign * rho < 0
    ]
