"""Limit: keeps the first tokens by a plain slice, which costs nothing; no method can be faster."""

from __future__ import annotations

from torch import Tensor

from repshift_cli.records import Case

OPTIONS = ()


def needs(case: Case) -> tuple[str, ...]:
    """Nothing."""
    return ()


def cut(hidden: Tensor, prefix: int, count: int) -> Tensor:
    """The first `count` tokens after the prefix, as a view: (B, P + N, C) -> (B, P + count, C)."""
    return hidden[:, : prefix + count]
