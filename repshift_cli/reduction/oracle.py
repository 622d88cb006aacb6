"""Limit: keeps the first tokens by a plain slice, which costs nothing; no method can be faster."""

from __future__ import annotations

from repshift_cli.reduction import nothing

needs = nothing
score = None


def choose(tokens: int, count: int) -> range:
    """The first `count` of `tokens` places."""
    return range(count)
