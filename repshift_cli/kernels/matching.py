"""Bipartite matching of token merging (ToMe, arXiv 2210.09461): every token of one half finds its best of the other.

The similarities of N/2 x N/2 tokens are worked out in blocks of rows of at most `MOST` elements, of which only the best
of each row is kept. For B x N tokens of d elements of e bytes: 2 launches a block, B N d e / 2 a block and B N^2 e / 2
bytes, of which 12 B N / 2 are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST = 2**24
"""Similarities that exist at a time: 32 MiB in bf16, so that what is above a few thousand tokens stays in the cache."""


def best_match(
    one: Tensor,
    other: Tensor,
    closed: Tensor | None = None,
    weigh: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Of every row of `one` the highest product with a row of `other`, and which: (B, n, d), (B, m, d) -> (B, n) twice.

    Columns where `closed` (m) or (B, m) is true are matched with nothing. `weigh` makes of a block of products
    (B, rows, m) what they are compared by, before columns are closed.
    """
    size = max(1, MOST // (one.shape[0] * other.shape[1]))
    columns = other.transpose(1, 2)
    shut = None if closed is None else closed.unsqueeze(-2)
    found = []
    for rows in one.split(size, 1):
        products = rows @ columns
        if weigh is not None:
            products = weigh(products)
        found.append((products if shut is None else products.masked_fill(shut, -torch.inf)).max(-1))
    if len(found) == 1:
        return found[0].values, found[0].indices
    return torch.cat([f.values for f in found], 1), torch.cat([f.indices for f in found], 1)
