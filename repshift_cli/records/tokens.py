"""How many tokens stay: arithmetic that every room must do alike."""

from __future__ import annotations

from decimal import Decimal
from math import isqrt

from repshift_cli.records.case import Case, Keep
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
    """`kept` with its share worked out before: whole numbers only, so that torch.compile can follow it.

    `of` 0 drops a fixed `number`, but no more than half, as ToMe's authors have it: so that all methods can.
    """
    return max(1, tokens - (tokens * number // of if of else min(number, tokens // 2)))


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


def removals(text: str, layers: int) -> tuple[int, ...]:
    """How many tokens leave at each of so many layers: `16` as many at each, `30:0` from 30 down to 0 in even steps.

    The steps are rounded down (Bolya et al. 2023, arXiv 2210.09461: their decreasing schedule of r 15 is `30:0`).
    ValueError says how it is written.
    """
    ends = text.split(":")
    if len(ends) > 2 or not all(end.strip().isdecimal() for end in ends):
        raise ValueError(f"{text!r} is no number of tokens; write 16 for each layer, or 30:0 for fewer at each")
    first, last = int(ends[0]), int(ends[-1])
    if last > first:
        raise ValueError(f"{text!r} goes up; write the larger number first, like 30:0")
    steps = max(1, layers - 1)
    return tuple(first - -(-(first - last) * i // steps) for i in range(layers))


def shares_of(case: Case) -> dict[int, tuple[int, int]]:
    """What leaves at each layer where anything does, as `left` takes it."""
    return _shares(case.keep, case.layers, case.remove)


def keeps_of(keep: Keep, layers: tuple[int, ...]) -> tuple[float, ...]:
    """The share that stays at each of these layers."""
    return keep if isinstance(keep, tuple) else (keep,) * len(layers)


def _shares(keep: Keep, layers: tuple[int, ...], remove: str | None) -> dict[int, tuple[int, int]]:
    if remove is not None:
        counts = removals(remove, len(layers))
        return {layer: (count, 0) for layer, count in zip(layers, counts, strict=True) if count}
    keeps = zip(layers, keeps_of(keep, layers), strict=True)
    return {layer: dropped_share(share) for layer, share in keeps if share < 1}


def tokens_along(
    facts: Facts, keep: Keep, layers: tuple[int, ...], remove: str | None = None, appends: int = 0
) -> tuple[int, ...]:
    """Tokens, protected ones too, at the input and after each cut: (197, 158, 127, 102) for DeiT at 0.8, 1, 4, 7.

    A method that appends tokens at each layer has that many more, which may go at the next.
    """
    if facts.along is not None:
        return facts.along(keep, layers)
    counts, shares = [facts.tokens], _shares(keep, layers, remove)
    for layer in layers:
        stay = left(counts[-1], *shares.get(layer, (0, 0)))
        counts.append(stay + (appends if stay < counts[-1] else 0))
    return tuple(n + facts.prefix for n in counts)
