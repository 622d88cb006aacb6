"""Fewer KV heads from those given: the average over each group, as a model is converted to GQA."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.operators.base.spec import Arranged


def pooled(q: Tensor, k: Tensor, v: Tensor, kv_heads: int) -> Arranged:
    """k and v (B, H, N, d) averaged to (B, kv_heads, N, d); they are what the full attention reads too."""
    k, v = (t.unflatten(1, (kv_heads, -1)).mean(2) for t in (k, v))
    return Arranged(q, k, v, full=lambda: (q, k, v))
