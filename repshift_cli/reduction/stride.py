"""Control: keeps tokens at a uniform stride, no scoring."""

from __future__ import annotations

from repshift_cli.reduction import nothing

needs = nothing
score = None


def choose(tokens: int, count: int) -> list[int]:
    """Place floor(i * tokens / count) for i = 0 .. count - 1."""
    return [i * tokens // count for i in range(count)]
