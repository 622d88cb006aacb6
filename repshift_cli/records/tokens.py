"""How many tokens stay: arithmetic that every room must do alike."""

from __future__ import annotations

from decimal import Decimal
from math import isqrt

from repshift_cli.records.subject import Facts


def dropped_share(keep: float) -> tuple[int, int]:
    """1 - keep as a fraction, in decimal: 0.8 -> (1, 5). In binary floats 10 * (1 - 0.8) is 1.9999999999999996."""
    return (1 - Decimal(str(keep))).as_integer_ratio()


def kept(tokens: int, keep: float) -> int:
    """How many of `tokens` (without prefix) stay at one cut: drop int(n * r), and at least one stays.

    (Choi et al. 2025, arXiv 2508.00367; rounding found by reproducing the paper's MACs.)
    """
    return left(tokens, *dropped_share(keep))


def left(tokens: int, number: int, of: int) -> int:
    """`kept` with its share worked out before: whole numbers only, so that torch.compile can follow it."""
    return max(1, tokens - tokens * number // of)


def lines_left(lines: int, number: int, of: int) -> int:
    """How many rows of a grid (and columns) stay, at least one, so that about 1 - number / of = keep of its tokens do.

    Of n lines round(n (1 - sqrt(keep))) go, in whole numbers, where a half goes to those that stay. At keep 0.72 that
    is 8 of 56 and 4 of 24, as in Choi et al. 2025 (arXiv 2508.00367, Table 6); at other sizes the same share.
    """
    return max(1, (isqrt(4 * lines * lines * (of - number) // of) + 1) // 2)


def protection(text: str | None) -> tuple[int, int]:
    """Leading and trailing tokens of `first:35,last:1`; ValueError says how it is written."""
    counts = {"first": 0, "last": 0}
    for piece in text.split(",") if text else ():
        name, _, number = piece.strip().partition(":")
        if name not in counts or not number.isdecimal():
            raise ValueError(f"{piece.strip()!r} is neither first:N nor last:N; write first:35,last:1")
        counts[name] = int(number)
    return counts["first"], counts["last"]


def tokens_along(facts: Facts, keep: float, layers: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens, protected ones too, at the input and after each cut: (197, 158, 127, 102) for DeiT at 0.8, 1, 4, 7."""
    if facts.along is not None:
        return facts.along(keep, layers)
    counts = [facts.tokens]
    for _ in layers:
        counts.append(kept(counts[-1], keep))
    return tuple(n + facts.prefix for n in counts)
