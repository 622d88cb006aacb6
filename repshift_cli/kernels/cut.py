"""Gathering the kept rows, where asked together with the residual add, as a Triton kernel or in plain torch.

For B x K rows kept (prefix included) of B x T, each of C elements of e bytes; with a prefix the plain ones launch
3 more. The Triton column is the floor too.

|                     | plain: launches | plain: bytes          | Triton: launches | Triton: bytes   |
|---------------------|-----------------|-----------------------|------------------|-----------------|
| `gather`            | 3               | 2 BKCe + 24 BK        | 1                | 2 BKCe + 8 BK   |
| an add and `gather` | 4               | 3 BTCe + 2 BKCe + ... | 2                | 3 BTCe + 2 BKCe |
| `gather_add`        | 5               | 7 BKCe + 32 BK        | 1                | 3 BKCe + 8 BK   |

So in plain torch `gather_add` saves bytes only where fewer than 3 of 5 rows are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.kernels import paths


def gather(hidden: Tensor, prefix: int, indices: Tensor) -> Tensor:
    """The prefix rows, then the rows at `indices` (counted after the prefix): (B, P + N, C), (B, k) -> (B, P + k, C).

    In plain torch one copy of whole rows (index_select over the flattened batch), several times faster on a CPU than
    torch.gather with an index expanded over C.
    """
    if paths.path_for("cut", hidden) == "triton":
        from repshift_cli.kernels import _cut_triton

        return _cut_triton.cut(hidden, None, prefix, indices)
    return _select(hidden, _rows(hidden, prefix, indices))


def gather_add(middle: Tensor, branch: Tensor, prefix: int, indices: Tensor) -> Tensor:
    """`gather` of middle + branch, adding only the rows kept: (B, P + N, C), (B, P + N, C), (B, k) -> (B, P + k, C).

    Bit for bit the rows of `middle + branch`, in the dtype of that sum.
    """
    if paths.path_for("cut", middle, branch) == "triton":
        from repshift_cli.kernels import _cut_triton

        return _cut_triton.cut(middle, branch, prefix, indices)
    rows = _rows(middle, prefix, indices)
    return _select(middle, rows) + _select(branch, rows)


def worth_adding_late(branch: Tensor, stay: int) -> bool:
    """Whether `gather_add` of `stay` rows moves fewer bytes than the whole sum and its `gather`."""
    return paths.path_for("cut", branch) == "triton" or 5 * stay < 3 * branch.shape[1]


def _rows(hidden: Tensor, prefix: int, indices: Tensor) -> Tensor:
    """Which rows of the flattened batch: (B, P + k)."""
    batch, tokens, _ = hidden.shape
    rows = indices
    if prefix:
        head = torch.arange(prefix, device=hidden.device).expand(batch, -1)
        rows = torch.cat((head, indices + prefix), dim=1)
    return rows + torch.arange(0, batch * tokens, tokens, device=hidden.device).unsqueeze(1)


def _select(hidden: Tensor, rows: Tensor) -> Tensor:
    return hidden.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)
