"""Attention sinks: which tokens draw attention, by block, head and length, and what the score makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base import packing
from repshift_cli.inspection.base.arrays import SHARE, axis, blocks, quantity
from repshift_cli.inspection.base.blocks import entering, own_attention, own_places, real_places, visiting
from repshift_cli.inspection.base.ranks import mean
from repshift_cli.inspection.base.rows import received
from repshift_cli.inspection.base.shifts import default_shift
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records.inspection import Answer, Quantity
from repshift_cli.reduction.engine.seen import Seen

RANK = 2
WHICH = ("first token", "most attracting", "any token")
LEAST = 8
"""Queries that must see a token for it to count: of the last ones of a causal sequence each sees itself most."""
OF_PACKED = ("first token", "later documents' first tokens", "any token")
UNSEEN = "attention by itself was not seen: no call of torch's attention over all tokens of one sample"


def unanswerable(look: Look) -> str | None:
    """A model without attention has no sinks, and one that reads no text has no documents to pack."""
    if not any(site.attention is not None for site in look.subject.sites):
        return "the model has no attention"
    return packing.unpackable(look, look.settings.packed) if look.settings.packed > 1 else None


@dataclass
class Drawn:
    """One block on one input: `attention` (H, N) that each token receives, state norms and shifts (N) of the tokens."""

    attention: Tensor | None = None
    norm: Tensor | None = None
    shift: Tensor | None = None


def answer(look: Look) -> Answer:
    """The attention received of every input at every length."""
    found = [_seen(look, inputs) for inputs in look.inputs]
    if not any(block.attention is not None for blocks_of in found for block in blocks_of):
        return Answer("sinks", "Attention sinks", "skipped", UNSEEN)
    epsilon = look.settings.epsilon
    quantities = [*_by_block(look, found), *_by_head(look, found)]
    lengths = [(entering(look.subject), sink_rates(found, epsilon))]
    for number, other in enumerate(look.others, start=1):
        look.tell(number / (len(look.others) + 1))
        there = other()
        seen = [_seen(there, inputs) for inputs in there.inputs]
        lengths.append((entering(there.subject), sink_rates(seen, epsilon)))
    quantities.append(
        quantity(
            "rate_by_length",
            "sink rate",
            f"Share of heads, over all blocks and inputs, whose mean attention on that token is above {epsilon:g}, by "
            "the number of tokens.",
            [axis("tokens", (n for n, _ in lengths)), axis("of", WHICH)],
            [rates for _, rates in lengths],
            view="table" if len(lengths) > 1 else "detail",
            **SHARE,
        )
    )
    settings: dict[str, Any] = {"inputs": len(found), "epsilon": epsilon, "least_queries": LEAST}
    if look.settings.packed > 1:
        quantities.append(_by_packing(look))
        settings |= {"packed": look.settings.packed, "start_token": packing.start_of(look)}
    reading = tuple(_read(quantities, lengths[0][1]))
    return Answer("sinks", "Attention sinks", settings=settings, quantities=tuple(quantities), reading=reading)


def _seen(look: Look, inputs: Any) -> list[Drawn]:
    real = real_places(look.subject, inputs)
    found = [Drawn() for _ in look.subject.sites]

    def visit(layer: int, seen: Seen) -> None:
        held = found[layer - 1]
        held.norm = seen["resid_post"][0].double().norm(dim=-1).cpu()
        held.shift = default_shift(look, layer, seen)[0].double().cpu()

    def hear(layer: int, call: AttentionCall) -> None:
        if own_attention(call, len(real)):
            drawn = received(call, real.to(call.query.device), least=LEAST)[0].cpu()
            found[layer - 1].attention = drawn.where(real, 0)

    with look.active(), visiting(look.subject, visit, hear):
        look.run(inputs)
    return found


# --- what follows -----------------------------------------------------------------------------------------------------


def sinks(attention: Tensor, epsilon: float) -> Tensor:
    """Whether each token is a sink of each head: attention received (H, N) -> (H, N).

    alpha_k^h > epsilon (Gu et al. 2025, arXiv 2410.10781, Eq. 7), alpha a mean over the queries that see token k.
    """
    return attention > epsilon


def block_rates(attention: Tensor, epsilon: float) -> list[float]:
    """The share of heads for which the first token, the one that draws most in this block, and any one is a sink."""
    there = sinks(attention, epsilon).double()
    most = int(attention.mean(0).argmax())
    return [float(there[:, 0].mean()), float(there[:, most].mean()), float(there.amax(1).mean())]


def sink_rates(found: Sequence[Sequence[Drawn]], epsilon: float) -> list[float | None]:
    """The sink rates over all blocks, heads and inputs, as `WHICH` names them."""
    rates = [block_rates(b.attention, epsilon) for bs in found for b in bs if b.attention is not None]
    return [mean([rate[n] for rate in rates]) for n in range(len(WHICH))]


def _by_block(look: Look, found: Sequence[Sequence[Drawn]]) -> Iterator[Quantity]:
    depth, layers = blocks(len(look.subject.sites)), range(len(look.subject.sites))
    epsilon = look.settings.epsilon
    held = [[(bs[n], at) for at, bs in enumerate(found) if bs[n].attention is not None] for n in layers]
    rates = [[block_rates(b.attention, epsilon) for b, _ in row if b.attention is not None] for row in held]
    yield quantity(
        "rate",
        "sink rate",
        f"share of heads whose mean attention on a token is above {epsilon:g} (Gu et al. 2025): on the first token; on "
        "the one that draws most in this block; on any.",
        [depth, axis("of", WHICH)],
        [[mean([rate[n] for rate in row]) for n in range(len(WHICH))] for row in rates],
        missing=UNSEEN,
        **SHARE,
    )
    own = [set(own_places(look.subject, inputs).tolist()) for inputs in look.inputs]
    yield quantity(
        "may_go",
        "may go",
        "share of the inputs in which the token that draws most is one that pruning may drop.",
        [depth],
        [mean([float(_most(b) in own[at]) for b, at in row]) for row in held],
        **SHARE,
    )
    yield quantity(
        "norm",
        "its norm",
        "state norm of the token that draws most, over the median of all tokens.",
        [depth],
        [mean([float(b.norm[_most(b)] / b.norm.median()) for b, _ in row if b.norm is not None]) for row in held],
        "x",
        low=0,
    )
    yield quantity(
        "shift_rank",
        "its shift's rank",
        "where it may go, the share of the other such tokens whose shift is lower: near 1 pruning keeps it, near 0 it "
        "goes first.",
        [depth],
        [mean([_rank(b, own[at]) for b, at in row]) for row in held],
        **SHARE,
    )
    yield quantity(
        "place",
        "place",
        "Place of the token that draws most in this block, from 0, on the first input.",
        [depth],
        [float(_most(row[0][0])) if row else None for row in held],
        view="detail",
    )


def _most(block: Drawn) -> int:
    assert block.attention is not None
    return int(block.attention.mean(0).argmax())


def _rank(block: Drawn, own: set[int]) -> float | None:
    if block.shift is None or _most(block) not in own or len(own) < 2:
        return None
    return float((block.shift[sorted(own)] < block.shift[_most(block)]).sum()) / (len(own) - 1)


def _by_packing(look: Look) -> Quantity:
    documents, epsilon = look.settings.packed, look.settings.epsilon
    rows: list[list[float | None]] = []
    for kind in packing.PACKINGS:
        if kind.started and packing.start_of(look) is None:
            rows.append([None] * len(OF_PACKED))
            continue
        with look.active():
            rates = [_packed_rates(look, kind, pieces) for pieces in packing.sequences(look, kind, documents)]
        rows.append([mean([rate[n] for rate in rates]) for n in range(len(OF_PACKED))])
    return quantity(
        "rate_by_packing",
        "sink rate",
        f"Share of heads, over all blocks and inputs, whose mean attention on that token is above {epsilon:g}: in "
        f"whole inputs, and in sequences as long, packed of the beginnings of {documents}; masked apart, no document "
        "sees another (Barbero et al. 2025).",
        [axis("sequence", (kind.name for kind in packing.PACKINGS)), axis("of", OF_PACKED)],
        rows,
        missing="a whole input has no later documents, or the model names no start token",
        **SHARE,
    )


def _packed_rates(look: Look, kind: packing.Packing, pieces: list[Tensor]) -> list[float | None]:
    """The rates of the first token, of the later documents' first ones, and of any: means over blocks and heads."""
    starts = [sum(piece.shape[1] for piece in pieces[:n]) for n in range(1, len(pieces))]
    found = [sinks(a, look.settings.epsilon).double() for a in packing.attention_of(look, pieces, kind, LEAST)]
    return [
        mean([float(there[:, 0].mean()) for there in found]),
        mean([float(there[:, starts].mean()) for there in found]) if starts else None,
        mean([float(there.amax(1).mean()) for there in found]),
    ]


def _by_head(look: Look, found: Sequence[Sequence[Drawn]]) -> Iterator[Quantity]:
    seen = [b.attention for bs in found for b in bs if b.attention is not None]
    heads = max(len(a) for a in seen)
    axes = [blocks(len(look.subject.sites)), axis("head", range(1, heads + 1))]
    for name, label, of in (
        ("attention_first", "attention on the first token", _on_first),
        ("attention_most", "attention on the token that draws most of each head", _on_most),
    ):
        rows = []
        for n in range(len(look.subject.sites)):
            columns = [of(a) for bs in found if (a := bs[n].attention) is not None and len(a) == heads]
            rows.append(torch.stack(columns).mean(0).tolist() if columns else [None] * heads)
        yield quantity(name, label, f"Mean {label}, over the queries that see it.", axes, rows, view="map", **SHARE)


def _on_first(attention: Tensor) -> Tensor:
    return attention[:, 0]


def _on_most(attention: Tensor) -> Tensor:
    return attention.amax(1)


def _read(quantities: Sequence[Quantity], rates: Sequence[float | None]) -> Iterator[str]:
    first, most, _ = rates
    yield f"{_percent(first)} of all heads lean on the first token, {_percent(most)} on the one that draws most"
    by_name = {q.name: q for q in quantities}
    if "rate_by_packing" in by_name:
        packed = dict(by_name["rate_by_packing"].items())
        later = [packed[kind, OF_PACKED[1]] for kind in (packing.PACKED, packing.APART)]
        yield (
            f"packed without start tokens, {_percent(later[0])} of all heads lean on a later document's first token, "
            f"{_percent(later[1])} where documents are masked apart"
        )
    drops = [value for value in by_name["may_go"].values if value is not None]
    if drops and not any(drops):
        yield "the token that draws most is always one that is protected"
    ranks = [(v, n) for n, v in enumerate(by_name["shift_rank"].values, start=1) if v is not None]
    if ranks and any(drops):
        least = min(ranks)
        yield f"where it may go its shift ranks lowest after block {least[1]}: above {_percent(least[0])} of the others"


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"
