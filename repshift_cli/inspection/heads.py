"""Dormant heads: which put out next to nothing, what the model does without them, and what the shift does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.arrays import CORRELATION, SHARE, axis, blocks, quantity
from repshift_cli.inspection.base.blocks import own_attention, own_places, real_places, visiting
from repshift_cli.inspection.base.effects import change, measure_of, read_out
from repshift_cli.inspection.base.ranks import mean, rank_correlation
from repshift_cli.inspection.base.shifts import default_shift
from repshift_cli.inspection.sinks import UNSEEN, unanswerable
from repshift_cli.kernels.sdpa import Answer as Attend
from repshift_cli.kernels.sdpa import AttentionCall, watched_in
from repshift_cli.records.inspection import Answer, Quantity
from repshift_cli.reduction.engine.seen import Seen

__all__ = ["RANK", "answer", "unanswerable"]

RANK = 3
DRAWS = 3
"""Random choices of as many other heads, to compare with."""


@dataclass
class Heads:
    """One input: by block the `norms` (H) of the heads' outputs, and what leaving some out did."""

    norms: dict[int, Tensor] = field(default_factory=dict)
    shifts: dict[int, Tensor] = field(default_factory=dict)
    shifts_without: dict[int, Tensor] = field(default_factory=dict)
    effect: float | None = None
    others: float | None = None
    by_block: dict[int, tuple[float, float]] = field(default_factory=dict)


def answer(look: Look) -> Answer:
    """The norms of every input, then the forwards without the dormant heads and without others."""
    found, what = [], ""
    for number, inputs in enumerate(look.inputs):
        with look.active():
            what = measure_of(look.subject, look.run(inputs))
            found.append(_looked(look, inputs, number, what))
        look.tell((number + 1) / len(look.inputs))
    if not any(heads.norms for heads in found):
        return Answer("heads", "Dormant heads", "skipped", UNSEEN)
    quantities = [*_by_block(look, found, what), *_by_head(look, found)]
    settings = {"inputs": len(found), "dormant": look.settings.dormant, "effect": what}
    reading = tuple(_read(look, found))
    return Answer("heads", "Dormant heads", settings=settings, quantities=tuple(quantities), reading=reading)


def dormant(norms: Tensor, threshold: float) -> Tensor:
    """Which heads of a block are dormant, by the mean norm of their outputs over tokens: (H,) -> (H,).

    A head is dormant on an input if its norm is below `threshold` times the mean over the block's heads
    (Sandoval-Segura et al. 2025, arXiv 2504.03889).
    """
    return norms < threshold * norms.mean()


# --- one input --------------------------------------------------------------------------------------------------------


def _looked(look: Look, inputs: Any, number: int, what: str) -> Heads:
    subject, held = look.subject, Heads()
    real, own = real_places(subject, inputs), own_places(subject, inputs)

    def measure(layer: int, call: AttentionCall, attend: Attend) -> Tensor:
        out = attend(call)
        if own_attention(call, len(real)):
            held.norms[layer] = out[0, :, real.to(out.device)].double().norm(dim=-1).mean(1).cpu()
        return out

    def keep(place: dict[int, Tensor], layer: int, seen: Seen) -> None:
        place[layer] = default_shift(look, layer, seen)[0, own].double().cpu()

    with _watching(look, measure), visiting(subject, partial(keep, held.shifts)):
        reference = read_out(subject, look.run(inputs))
    asleep = {layer: dormant(norms, look.settings.dormant) for layer, norms in held.norms.items()}
    if not any(heads.any() for heads in asleep.values()):
        return held
    draw = torch.Generator().manual_seed(look.settings.seed + number)

    def effect(off: Mapping[int, Tensor]) -> float:
        with _without(look, off):
            return float(change(reference, read_out(subject, look.run(inputs)), what))

    with visiting(subject, partial(keep, held.shifts_without)):
        held.effect = effect(asleep)
    held.others = mean([effect({n: _as_many(h, draw) for n, h in asleep.items()}) for _ in range(DRAWS)])
    for layer, heads in asleep.items():
        if heads.any():
            others = [effect({layer: _as_many(heads, draw)}) for _ in range(DRAWS)]
            held.by_block[layer] = effect({layer: heads}), sum(others) / DRAWS
    return held


def _as_many(heads: Tensor, draw: torch.Generator) -> Tensor:
    """As many heads at random among all that are not these, or of all where there are too few others."""
    pool = (~heads).nonzero().squeeze(1)
    pool = pool if len(pool) >= int(heads.sum()) else torch.arange(len(heads))
    chosen = torch.zeros_like(heads)
    chosen[pool[torch.randperm(len(pool), generator=draw)[: int(heads.sum())]]] = True
    return chosen


@contextmanager
def _watching(look: Look, watcher: Any) -> Iterator[None]:
    """Within it `watcher(layer, call, attend)` stands around every block's attention."""
    with ExitStack() as stack:
        for layer, site in enumerate(look.subject.sites, start=1):
            stack.enter_context(watched_in(site.block, partial(watcher, layer)))
        yield


@contextmanager
def _without(look: Look, off: Mapping[int, Tensor]) -> Iterator[None]:
    """Within it the heads marked in `off`, (H,) by block, put out zero."""

    def silence(layer: int, call: AttentionCall, attend: Attend) -> Tensor:
        out = attend(call)
        if layer not in off or len(off[layer]) != out.shape[1]:
            return out
        return out.masked_fill(off[layer].to(out.device).view(1, -1, 1, 1), 0)

    with _watching(look, silence):
        yield


# --- all inputs -------------------------------------------------------------------------------------------------------


def _by_block(look: Look, found: Sequence[Heads], what: str) -> Iterator[Quantity]:
    depth, layers = blocks(len(look.subject.sites)), range(1, len(look.subject.sites) + 1)
    threshold, none = look.settings.dormant, "no head is dormant on any input"
    yield quantity(
        "dormant",
        "dormant",
        f"share of heads whose output's norm is below {threshold:g} times the mean of their block's "
        "(Sandoval-Segura et al. 2025).",
        [depth],
        [mean([float(dormant(h.norms[n], threshold).double().mean()) for h in found if n in h.norms]) for n in layers],
        missing=UNSEEN,
        **SHARE,
    )
    yield quantity(
        "effect",
        "without",
        f"{what}, where the block's dormant heads put out zero; other heads: where as many at random of the others do.",
        [depth, axis("without", ("dormant heads", "other heads"))],
        [[mean([h.by_block[n][k] for h in found if n in h.by_block]) for k in (0, 1)] for n in layers],
        missing=none,
        low=0,
    )
    yield quantity(
        "shift_without",
        "shift's rank correlation",
        "Spearman's, over tokens, of the shift with itself where all dormant heads of the model put out zero.",
        [depth],
        [
            mean([rank_correlation(h.shifts[n], h.shifts_without[n]) for h in found if n in h.shifts_without])
            for n in layers
        ],
        missing=none,
        **CORRELATION,
    )


def _by_head(look: Look, found: Sequence[Heads]) -> Iterator[Quantity]:
    heads = max(len(norms) for h in found for norms in h.norms.values())
    rows = []
    for layer in range(1, len(look.subject.sites) + 1):
        there = [h.norms[layer] / h.norms[layer].mean() for h in found if len(h.norms.get(layer, ())) == heads]
        rows.append(torch.stack(there).mean(0).tolist() if there else [None] * heads)
    yield quantity(
        "norm",
        "norm of the head's output",
        "Mean norm over tokens of each head's output, over the mean of its block's heads; the mean over inputs.",
        [blocks(len(look.subject.sites)), axis("head", range(1, heads + 1))],
        rows,
        "x",
        view="map",
        low=0,
    )


def _read(look: Look, found: Sequence[Heads]) -> Iterator[str]:
    marks = [dormant(n, look.settings.dormant).double() for h in found for n in h.norms.values()]
    yield f"{float(torch.cat(marks).mean()):.0%} of all heads are dormant"
    effect, others = mean([h.effect for h in found]), mean([h.others for h in found])
    if effect is not None and others is not None:
        yield f"all of them put to zero change the output by {effect:.3g}, as many others by {others:.3g}"
