"""Cache and length: what a decoder's KV cache holds and saves, by prefill and decode, pruned and not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.arrays import axis, quantity
from repshift_cli.inspection.base.blocks import entering, visiting
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import call, kept
from repshift_cli.records.inspection import Answer, Quantity
from repshift_cli.reduction import Method, repshift
from repshift_cli.reduction.engine.hooks import pruned

RANK = 6
KEEP = 0.5
REPEATS = 5
LENGTHS = tuple(128 * 2**n for n in range(9))
"""128 to 32768."""
PAGE, COMPRESSION = 16, 4
"""Tokens of a page (vLLM's default), and of DMC's rate."""
TIMES = ("prefill", "decode", "decode without cache", "prefill, pruned", "decode, pruned")


def unanswerable(look: Look) -> str | None:
    """Only a decoder's prefill leaves a cache behind."""
    given = look.inputs[0]
    return (
        None if isinstance(given, dict) and given.get("use_cache") else "the model is no decoder that keeps a KV cache"
    )


@dataclass(frozen=True)
class Sizes:
    """What a cache's bytes follow from: layers, query and KV heads, head dim, bytes of a number."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    itemsize: int


def answer(look: Look) -> Answer:
    """Every length that was asked for measured on the first input, then the formulas from 128 to 32k tokens."""
    measured = []
    looks: Sequence[Callable[[], Look]] = (lambda: look, *look.others)
    for number, make in enumerate(looks, start=1):
        measured.append(_measured(make()))
        look.tell(number / len(looks))
    sizes = measured[0].sizes
    quantities = list(_quantities(look, measured, sizes))
    settings = {"keep": KEEP, "after_block": _layer(look), "repeats": REPEATS, **vars(sizes)}
    reading = tuple(_read(measured))
    return Answer("cache", "Cache and length", settings=settings, quantities=tuple(quantities), reading=reading)


def cache_bytes(kind: str, tokens: int, s: Sizes, layer: int = 1, keep: float = KEEP) -> int:
    """Bytes of keys and values per sample, over all layers.

    | kind | numbers per token and layer |
    |---|---|
    | multi-head | 2 H d |
    | grouped (the model's own where Hkv < H) | 2 Hkv d |
    | multi-query | 2 d |
    | MLA | 4 d + d / 2: latent and rotary key of DeepSeek-V2 (arXiv 2405.04434) |
    | slim | H d: keys alone (arXiv 2503.05840) |
    | paged | 2 Hkv d, the last page of 16 tokens held whole (arXiv 2309.06180) |
    | DMC | 2 Hkv d / 4 (arXiv 2403.09636) |
    | pruned | 2 Hkv d, in the layers behind the cut for the tokens kept alone |
    """
    own = 2 * s.kv_heads * s.head_dim
    numbers = {
        "multi-head": 2 * s.heads * s.head_dim * tokens,
        "grouped": own * tokens,
        "multi-query": 2 * s.head_dim * tokens,
        "MLA": (4 * s.head_dim + s.head_dim // 2) * tokens,
        "slim": s.heads * s.head_dim * tokens,
        "paged": own * -(-tokens // PAGE) * PAGE,
        "DMC": own * -(-tokens // COMPRESSION),
    }
    if kind == "pruned":
        rows = layer * tokens + (s.layers - layer) * kept(tokens, keep)
        return own * rows * s.itemsize
    return numbers[kind] * s.layers * s.itemsize


KINDS = ("multi-head", "grouped", "multi-query", "MLA", "slim", "paged", "DMC", "pruned")


# --- what is measured -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """One length: milliseconds as `TIMES` names them, and the bytes that prefill left behind, pruned last."""

    tokens: int
    sizes: Sizes
    times: tuple[float, ...]
    held: tuple[int, int]


def timed(run: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median milliseconds of `REPEATS` runs, behind one that is not counted."""
    run()
    found = []
    for _ in range(REPEATS):
        begun = _now(device, clock)
        run()
        found.append(1e3 * (_now(device, clock) - begun))
    return median(found)


def _now(device: str, clock: Callable[[], float]) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return clock()


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
            _decode_time(look, cache),
            timed(lambda: call(subject.module, {**inputs, "use_cache": False}), device),
        ]
        case = replace(look.case, pruning="repshift", keep=KEEP, layers=(_layer(look),))
        method: Method = repshift  # type: ignore[assignment]
        with pruned(subject, method, case):
            shorter = look.run(inputs).past_key_values
            times.append(timed(lambda: look.run(inputs), device))
        times.append(_decode_time(look, shorter))
    return Measured(entering(subject), sizes, tuple(times), (held_by(cache), held_by(shorter)))


def decode(look: Look, ids: Tensor, cache: Any) -> Any:
    """The output for one more token, ids (1, 1), behind a cache, which grows by it.

    A cache that was pruned has fewer rows in later layers: one query sees all rows of its layer, and its position is
    that behind the whole prompt, which the first layer still holds.
    """
    return call(look.subject.module, {"input_ids": ids, "past_key_values": cache, "use_cache": True})


def _decode_time(look: Look, cache: Any) -> float:
    """Milliseconds of one token behind the cache, a copy of which each run extends."""
    ids = look.inputs[0]["input_ids"][:, -1:]
    ready = [deepcopy(cache) for _ in range(REPEATS + 1)]
    return timed(lambda: decode(look, ids, ready.pop()), look.case.device)


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


def _quantities(look: Look, measured: Sequence[Measured], sizes: Sizes) -> Iterator[Quantity]:
    lengths = axis("tokens", (m.tokens for m in measured))
    cut = f"keep {KEEP:g} after block {_layer(look)}"
    yield quantity(
        "times",
        "time",
        f"median of {REPEATS} runs at batch 1: the prompt; one more token behind its cache; that token where the whole "
        f"prompt has to be run again; pruned: {cut} in prefill, so that later blocks have fewer KV rows.",
        [lengths, axis("step", TIMES)],
        [m.times for m in measured],
        "ms",
        low=0,
    )
    yield quantity(
        "held",
        "cache",
        f"bytes of keys and values that prefill leaves behind, over all blocks; pruned: {cut}.",
        [lengths, axis("prefill", ("whole", "pruned"))],
        [[held / 2**20 for held in m.held] for m in measured],
        "MiB",
        low=0,
    )
    yield quantity(
        "bytes",
        "cache by formula",
        f"by formula, for these sizes ({sizes.layers} blocks, {sizes.heads} heads, {sizes.kv_heads} KV heads of "
        f"{sizes.head_dim}); pruned: {cut}.",
        [axis("prompt", LENGTHS), axis("kind", KINDS)],
        [[cache_bytes(kind, n, sizes, _layer(look)) / 2**20 for kind in KINDS] for n in LENGTHS],
        "MiB",
        low=0,
    )


def _read(measured: Sequence[Measured]) -> Iterator[str]:
    longest = max(measured, key=lambda m: m.tokens)
    _, with_cache, without, _, pruned_decode = longest.times
    yield (
        f"at {longest.tokens} tokens the next takes {with_cache:.1f} ms with the cache and {without:.1f} ms without, "
        f"{pruned_decode:.1f} ms behind a pruned one that holds {longest.held[1] / longest.held[0]:.0%}"
    )
