"""Cache and length: what a decoder's KV cache holds and saves, by prefill and decode, pruned and not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.arrays import axis, quantity
from repshift_cli.inspection.base.blocks import entering, visiting
from repshift_cli.inspection.base.caches import KEEP, KINDS, OPERATORS, REPEATS, Sizes, cache_bytes, of_operator, timed
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.probes.memory import ABOVE, MemoryProbe
from repshift_cli.records import Step, call
from repshift_cli.records.inspection import Answer, Quantity
from repshift_cli.reduction import Method, repshift
from repshift_cli.reduction.engine.hooks import pruned

RANK = 6
LENGTHS = tuple(128 * 2**n for n in range(9))
"""128 to 32768."""
TIMES = ("prefill", "decode", "decode without cache", "prefill, pruned", "decode, pruned")
PEAKS = ("prefill", "decode", "prefill, pruned", "decode, pruned")


def unanswerable(look: Look) -> str | None:
    """Only a decoder's prefill leaves a cache behind."""
    given = look.inputs[0]
    return (
        None if isinstance(given, dict) and given.get("use_cache") else "the model is no decoder that keeps a KV cache"
    )


def answer(look: Look) -> Answer:
    """Every length that was asked for measured on the first input under each attention, then what other caches hold,
    from 128 to 32k tokens, by formula and by their operators."""
    measured: dict[str, list[Measured]] = {}
    looks: Sequence[Callable[[], Look]] = (lambda: look, *look.others)
    for number, make in enumerate(looks, start=1):
        here = make()
        for one in (here, *here.beside):
            measured.setdefault(one.case.attention, []).append(_measured(one))
        look.tell(number / (len(looks) + 1))
    own = measured[look.case.attention]
    sizes = own[0].sizes
    quantities = [
        *(q for name, some in measured.items() for q in _of_attention(look, name, some)),
        _held(look, own),
        *_by_kind(look, sizes),
    ]
    settings = {"keep": KEEP, "after_block": _layer(look), "repeats": REPEATS, **vars(sizes)}
    reading = tuple(_read(own))
    return Answer("cache", "Cache and length", settings=settings, quantities=tuple(quantities), reading=reading)


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One length: milliseconds as `TIMES` names them, the peak bytes over what rests as `PEAKS` does, and the bytes
    that prefill left behind, pruned last."""

    tokens: int
    sizes: Sizes
    times: tuple[float, ...]
    peaks: tuple[float | None, ...]
    held: tuple[int, int]


def _measured(look: Look) -> Measured:
    subject, device, inputs = look.subject, look.case.device, look.inputs[0]
    with look.active():
        heads: list[int] = []

        def hear(layer: int, one: AttentionCall) -> None:
            heads.append(one.query.shape[1])

        with visiting(subject, hear=hear):
            cache = look.run(inputs).past_key_values
        keys = tensors_of(cache)[0][0]
        sizes = Sizes(len(subject.sites), heads[0], keys.shape[1], keys.shape[-1], keys.element_size())
        times = [
            timed(lambda: look.run(inputs), device),
            timed(_decoding(look, cache), device),
            timed(lambda: call(subject.module, {**inputs, "use_cache": False}), device),
        ]
        peaks = [_peak(look, lambda: look.run(inputs)), _peak(look, _decoding(look, cache))]
        case = replace(look.case, pruning="repshift", keep=KEEP, layers=(_layer(look),))
        method: Method = repshift  # type: ignore[assignment]
        with pruned(subject, method, case):
            shorter = look.run(inputs).past_key_values
            times.append(timed(lambda: look.run(inputs), device))
            peaks.append(_peak(look, lambda: look.run(inputs)))
        times.append(timed(_decoding(look, shorter), device))
        peaks.append(_peak(look, _decoding(look, shorter)))
    return Measured(entering(subject), sizes, tuple(times), tuple(peaks), (held_by(cache), held_by(shorter)))


def decode(look: Look, ids: Tensor, cache: Any) -> Any:
    """The output for one more token, ids (1, 1), behind a cache, which grows by it.

    A cache that was pruned has fewer rows in later layers: one query sees all rows of its layer, and its position is
    that behind the whole prompt, which the first layer still holds.
    """
    return call(look.subject.module, {"input_ids": ids, "past_key_values": cache, "use_cache": True})


def _decoding(look: Look, cache: Any) -> Callable[[], Any]:
    """Gives one token behind the cache, a copy of which each of its runs extends."""
    ids = look.inputs[0]["input_ids"][:, -1:]
    ready = [deepcopy(cache) for _ in range(REPEATS + 1)]
    return lambda: decode(look, ids, ready.pop())


def _peak(look: Look, run: Callable[[], Any]) -> float | None:
    """Peak bytes of a run over what rests, as `bench` has them; None where no allocator tells."""
    step = Step(look.case, look.subject, nullcontext, run, look.run)
    found = {m.metric: m for m in MemoryProbe(lambda: "not asked for").measure(step)}[ABOVE.name]
    return found.samples[0] if found.samples else None


def tensors_of(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """(keys, values), each (B, Hkv, n, d), of every layer of a transformers cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def held_by(cache: Any) -> int:
    """Bytes of all keys and values of one sample."""
    return sum(t.nbytes // len(t) for pair in tensors_of(cache) for t in pair)


def _layer(look: Look) -> int:
    """The cut is at a quarter of the depth, as where `bench` is told no layers."""
    return max(1, len(look.subject.sites) // 4)


# --- what is told -----------------------------------------------------------------------------------------------------


def _cut(look: Look) -> str:
    return f"keep {KEEP:g} after block {_layer(look)}"


def _of_attention(look: Look, name: str, measured: Sequence[Measured]) -> Iterator[Quantity]:
    """Times and peaks under one attention back end; the first one's names stand alone."""
    lengths = axis("tokens", (m.tokens for m in measured))
    end = "" if name == look.case.attention else f"_{name}"
    yield quantity(
        f"times{end}",
        name,
        f"with {name} attention at batch 1, the median of up to {REPEATS} runs: the prompt; one more token behind its "
        f"cache; that token where the whole prompt has to be run again; pruned: {_cut(look)} in prefill, so that later "
        "blocks have fewer KV rows.",
        [lengths, axis("step", TIMES)],
        [m.times for m in measured],
        "ms",
        low=0,
    )
    yield quantity(
        f"peaks{end}",
        f"{name} peak",
        f"with {name} attention: the allocator's highest level above what rests, in one run.",
        [lengths, axis("step", PEAKS)],
        [[None if v is None else v / 2**20 for v in m.peaks] for m in measured],
        "MiB",
        low=0,
    )


def _held(look: Look, measured: Sequence[Measured]) -> Quantity:
    return quantity(
        "held",
        "cache",
        f"bytes of keys and values that prefill leaves behind, over all blocks; pruned: {_cut(look)}.",
        [axis("tokens", (m.tokens for m in measured)), axis("prefill", ("whole", "pruned"))],
        [[held / 2**20 for held in m.held] for m in measured],
        "MiB",
        low=0,
    )


def _by_kind(look: Look, sizes: Sizes) -> Iterator[Quantity]:
    """Other caches for the model's sizes: bytes by formula, and what their operators take and read."""
    told = f"{sizes.layers} blocks, {sizes.heads} heads, {sizes.kv_heads} KV heads of {sizes.head_dim}"
    prompts = axis("prompt", LENGTHS)
    yield quantity(
        "bytes",
        "cache by formula",
        f"by formula, for these sizes ({told}); pruned: {_cut(look)}.",
        [prompts, axis("kind", KINDS)],
        [[cache_bytes(kind, n, sizes, _layer(look)) / 2**20 for kind in KINDS] for n in LENGTHS],
        "MiB",
        low=0,
    )
    like = next(look.subject.module.parameters())
    with torch.inference_mode():  # not the model's attention, but the operators' own
        found = [[of_operator(kind, n, sizes, like) for kind in OPERATORS] for n in LENGTHS]
    yield quantity(
        "operator_times",
        "one query",
        "one query's attention in one block, by the plain form of that cache's operator (`repshift operators`), the "
        f"median of {REPEATS} runs on planted keys: time alone, the projections apart.",
        [prompts, axis("kind", OPERATORS)],
        [[time for time, _ in row] for row in found],
        "ms",
        low=0,
        missing="its kernel does not take this dtype here",
    )
    yield quantity(
        "operator_bytes",
        "cache of the operators",
        "Bytes of the tensors that the operator of that cache is given, for all blocks (padding included).",
        [prompts, axis("kind", OPERATORS)],
        [[sizes.layers * held / 2**20 for _, held in row] for row in found],
        "MiB",
        view="detail",
        low=0,
    )


def _read(measured: Sequence[Measured]) -> Iterator[str]:
    longest = max(measured, key=lambda m: m.tokens)
    _, with_cache, without, _, pruned_decode = longest.times
    yield (
        f"at {longest.tokens} tokens the next takes {with_cache:.1f} ms with the cache and {without:.1f} ms without, "
        f"{pruned_decode:.1f} ms behind a pruned one that holds {longest.held[1] / longest.held[0]:.0%}"
    )
