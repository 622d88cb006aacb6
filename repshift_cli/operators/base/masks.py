"""Masks as functions of the places of a query i and a key j: True where j is seen. They broadcast, and Flex takes them.

With them come the numbers of pairs that they let through, counted by formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Mask = Callable[[Any, Any], Any]


def everything(i: Any, j: Any) -> Any:
    """Every key is seen."""
    return (i >= 0) & (j >= 0)


def causal(i: Any, j: Any) -> Any:
    """Keys up to the query's own place."""
    return j <= i


def band(left: int, right: int) -> Mask:
    """Keys from `left` before to `right` behind the query."""
    return lambda i, j: (i - j <= left) & (j - i <= right)


def window(w: int, is_causal: bool) -> Mask:
    """|i - j| <= w, or, causal, 0 <= i - j < w."""
    return band(w - 1, 0) if is_causal else band(w, w)


def reach(w: int, is_causal: bool) -> tuple[int, int]:
    """How far a window reaches to the left and to the right."""
    return (w - 1, 0) if is_causal else (w, w)


def either(*masks: Mask) -> Mask:
    """What any of them lets through."""

    def seen(i: Any, j: Any) -> Any:
        found = masks[0](i, j)
        for mask in masks[1:]:
            found = found | mask(i, j)
        return found

    return seen


def both(*masks: Mask) -> Mask:
    """What all of them let through."""

    def seen(i: Any, j: Any) -> Any:
        found = masks[0](i, j)
        for mask in masks[1:]:
            found = found & mask(i, j)
        return found

    return seen


def dense(mask: Mask, queries: int, keys: int, device: Any = None) -> Tensor:
    """The mask as (queries, keys), the queries being the last of the keys' places."""
    i = torch.arange(keys - queries, keys, device=device)[:, None]
    return mask(i, torch.arange(keys, device=device)[None, :])


def pairs(n: int, is_causal: bool) -> int:
    """Pairs of full attention."""
    return n * (n + 1) // 2 if is_causal else n * n


def band_pairs(n: int, left: int, right: int) -> int:
    """Pairs of a band: each side loses the triangle that lies beyond the sequence's ends."""
    return n + sum(side * n - side * (side + 1) // 2 for side in (min(left, n - 1), min(right, n - 1)))
