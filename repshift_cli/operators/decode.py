"""Decoding: one query against a cache with all KV heads, by flash attention. The reference of the decode forms.

softmax(s q k^T) v with one row; `split` splits the keys and combines the parts by their sums (split-K).
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.operators.base.caches import split_cost, split_keys
from repshift_cli.operators.base.counts import fused as cost
from repshift_cli.operators.base.packages import FLASH_ATTN2, package
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.sdpa import FLASH, attend
from repshift_cli.operators.base.spec import Engine, Spec
from repshift_cli.operators.base.spec import last_query as arrange
from repshift_cli.operators.base.spec import takes_all as refused

PAPER = "Dao et al. 2023, Flash-Decoding, pytorch.org/blog/flash-decoding"
CLASS = "decode"
CAUSAL = (True,)

__all__ = ["arrange", "attend", "cost", "refused"]


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return attention(q, k, v)


ENGINES = {
    "plain": FLASH,
    "split": Engine(split_keys, unasked=("cpu", "cuda"), cost=split_cost),
    "flash_attn2": package(*FLASH_ATTN2, cost=cost),
}
