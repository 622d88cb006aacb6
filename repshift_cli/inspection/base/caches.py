"""What a KV cache holds by its kind: by formula, and by the decode operator of that kind where there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from repshift_cli.operators import decode, decode_gqa, decode_mla, decode_mqa, dmc, paged, slim
from repshift_cli.operators.base.inputs import planted
from repshift_cli.operators.base.spec import Shape, Spec
from repshift_cli.operators.gqa import heads_of
from repshift_cli.records import kept

KEEP = 0.5
REPEATS = 5
SECONDS = 10.0
"""Behind the first, no run is begun after so long: a prompt of thousands of tokens takes that by itself on a CPU."""
PAGE, COMPRESSION = 16, 4
"""Tokens of a page (vLLM's default), and of DMC's rate."""


@dataclass(frozen=True)
class Sizes:
    """What a cache's bytes follow from: layers, query and KV heads, head dim, bytes of a number."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    itemsize: int


def cache_bytes(kind: str, tokens: int, s: Sizes, layer: int = 1, keep: float = KEEP) -> int:
    """Bytes of keys and values per sample, over all layers.

    | kind | numbers per token and layer |
    |---|---|
    | multi-head | 2 H d |
    | grouped | 2 Hkv d, Hkv the model's own where it has groups, else H / 4 |
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
        "grouped": 2 * heads_of(s.heads, s.kv_heads) * s.head_dim * tokens,
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


OPERATORS: dict[str, Any] = {
    "multi-head": decode,
    "grouped": decode_gqa,
    "multi-query": decode_mqa,
    "MLA": decode_mla,
    "slim": slim,
    "paged": paged,
    "DMC": dmc,
}
"""The operator of each kind, in its plain form."""
KINDS = (*OPERATORS, "pruned")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
OF_ALL_HEADS = ("multi-head", "slim")
"""Kinds that have a key for each query head, whatever the model has."""


def timed(run: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median milliseconds of `REPEATS` runs behind one that is not counted, of fewer where they take `SECONDS`."""
    run()
    found = list[float]()
    while len(found) < REPEATS and sum(found) < 1e3 * SECONDS:
        begun = _now(device, clock)
        run()
        found.append(1e3 * (_now(device, clock) - begun))
    return median(found)


def _now(device: str, clock: Callable[[], float]) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return clock()


def of_operator(kind: str, tokens: int, s: Sizes, like: Tensor) -> tuple[float | None, int]:
    """Milliseconds of one query's attention in one layer, None where its kernel does not take the dtype, and the bytes
    that its operator reads of one layer's cache.

    Keys and values are planted (see `operators/`), batch 1, in the dtype and on the device of `like`, made before
    anything is timed.
    """
    operator = OPERATORS[kind]
    own = s.heads if kind in OF_ALL_HEADS else s.kv_heads
    spec = Spec(causal=True, page=PAGE, compression=COMPRESSION)
    given = planted(Shape(1, s.heads, own, tokens, s.head_dim, tokens), spec.seed)
    made = operator.arrange(*(t.to(like) for t in given), spec)
    engine = operator.ENGINES["plain"]
    held = sum({t.data_ptr(): t.nbytes for t in (made.k, made.v)}.values())
    if like.is_cuda and DTYPES.get(like.dtype) not in engine.offers.dtypes["cuda"]:
        return None, held
    with engine.session():
        attended = partial(engine.attend, made.q, made.k, made.v, spec, **made.parameters)
        return timed(attended, str(like.device)), held
