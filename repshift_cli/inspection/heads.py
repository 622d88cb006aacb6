"""Dormant heads: which put out next to nothing, what the model does without them, and what the shift does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Change, Judged, Look, Settings
from repshift_cli.inspection.base.arrays import CORRELATION, SHARE, axis, blocks, quantity
from repshift_cli.inspection.base.blocks import own_attention, own_places, places_of_real, real_places, visiting
from repshift_cli.inspection.base.effects import change, measure_of, read_out
from repshift_cli.inspection.base.ranks import mean, rank_correlation
from repshift_cli.inspection.base.shifts import default_shift
from repshift_cli.inspection.sinks import UNSEEN, unanswerable
from repshift_cli.kernels.sdpa import Answer as Attend
from repshift_cli.kernels.sdpa import AttentionCall, watched_in
from repshift_cli.records import Subject
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
    reading = [*_read(look, found)]
    if look.judge is not None:
        judged = look.judge(_changes(look.settings))
        quantities += _labelled(judged)
        settings |= {"samples": judged[0].samples, "metric": judged[0].metric}
        reading.append(_told(judged))
    return Answer("heads", "Dormant heads", settings=settings, quantities=tuple(quantities), reading=tuple(reading))


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


# --- labelled data ----------------------------------------------------------------------------------------------------

JUDGED = ("all heads", "without the dormant heads", "without as many others")


def _changes(settings: Settings) -> dict[str, Change]:
    """What is done to the model: by sample its dormant heads put out zero, or as many others at random."""
    return {
        JUDGED[1]: partial(silenced, threshold=settings.dormant),
        JUDGED[2]: partial(silenced, threshold=settings.dormant, others=True, seed=settings.seed),
    }


@contextmanager
def silenced(subject: Subject, threshold: float, others: bool = False, seed: int = 0) -> Iterator[None]:
    """Within it, on each sample of a batch, the heads that are dormant on that sample put out zero; or as many `others`
    at random in their place."""
    real: list[Tensor | None] = []
    size: list[int] = []
    draw = torch.Generator().manual_seed(seed)

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        real[:] = [None if subject.roles is None else places_of_real(subject, kwargs or args)]
        size[:] = [len(t) for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim][:1]

    def silence(call: AttentionCall, attend: Attend) -> Tensor:
        out = attend(call)
        if call.query.shape[2] != call.key.shape[2] or [len(out)] != size:  # windows, frames by themselves
            return out
        norms = _mean_norms(out, real[0])
        off = norms < threshold * norms.mean(1, keepdim=True)
        if others:
            order = (off.double() + torch.rand(off.shape, generator=draw).to(off.device)).argsort(1).argsort(1)
            off = order < off.sum(1, keepdim=True)
        return out.masked_fill(off[:, :, None, None], 0)

    with ExitStack() as stack:
        stack.callback(subject.module.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for site in subject.sites:
            stack.enter_context(watched_in(site.block, silence))
        yield


def _mean_norms(out: Tensor, real: Tensor | None) -> Tensor:
    """The mean norm over tokens of each head's output, padding apart: (B, H, N, d), (B, N) -> (B, H)."""
    norms = out.double().norm(dim=-1)
    if real is None or real.shape != (out.shape[0], out.shape[2]):
        return norms.mean(2)
    weight = real.to(norms).unsqueeze(1)
    return (norms * weight).sum(2) / weight.sum(2)


def _labelled(judged: Sequence[Judged]) -> Iterator[Quantity]:
    model = axis("model", JUDGED)
    metric, unit, samples = judged[0].metric, judged[0].unit, judged[0].samples
    yield quantity(
        "labelled",
        metric,
        f"on {samples} labelled samples, with its 95% interval; on each sample the heads that are dormant on it, or as "
        "many others at random, put out zero.",
        [model, axis("figure", ("", "from", "to"))],
        [one.score for one in judged],
        unit,
    )
    yield quantity(
        "labelled_difference",
        "difference",
        "that less the untouched model's, on the same samples, with its paired 95% interval.",
        [model, axis("figure", ("", "from", "to"))],
        [one.difference for one in judged],
        "points" if unit == "%" else unit,
        missing="it is the untouched model",
    )


def _told(judged: Sequence[Judged]) -> str:
    def words(one: Judged) -> str:
        value, low, high = one.difference
        shown = value is not None and low is not None and high is not None and not low <= 0 <= high
        return f"{value:+.2f}" + ("" if shown else " (not shown to differ)") if value is not None else "not measured"

    unit = "points" if judged[0].unit == "%" else judged[0].unit
    changes = f"{words(judged[1])} without dormant heads and {words(judged[2])} without as many others"
    return f"{judged[0].metric} on {judged[0].samples} labelled samples, in {unit or 'its own unit'}: {changes}"


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
