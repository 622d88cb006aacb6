"""Swin's windows: the tokens as a grid, cut into squares, rolled by half a square, with relative position bias."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from repshift_cli.kernels.bands import hidden
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import mixed, products
from repshift_cli.operators.base.spec import Arranged, Cost, Shape, Spec, drawn

TRAINED_BIAS = "carries a trained relative position bias, drawn from the seed here"


def grid(n: int, side: int) -> tuple[int, int] | None:
    """The most square grid of n tokens whose sides are whole windows: (rows, columns), or None."""
    for rows in range(math.isqrt(n), 0, -1):
        if n % rows == 0 and rows % side == 0 and (n // rows) % side == 0:
            return rows, n // rows
    return None


def refused(shape: Shape, spec: Spec) -> str | None:
    """Tokens that make no grid of whole windows."""
    if grid(shape.tokens, spec.side):
        return None
    return f"{shape.tokens} tokens make no grid of whole {spec.side} x {spec.side} windows"


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """The bias of every head for every offset within a window, (H, M^2, M^2), from a table of (2M - 1)^2."""
    side = spec.side
    table = drawn(q, spec, "swin bias", q.shape[1], (2 * side - 1) ** 2, scale=0.5)
    at = torch.arange(side)
    rows, columns = (t.flatten() for t in torch.meshgrid(at, at, indexing="ij"))
    offset = (rows[:, None] - rows + side - 1) * (2 * side - 1) + columns[:, None] - columns + side - 1
    return Arranged(q, k, v, {"bias": table[:, offset.to(q.device)]}, full=TRAINED_BIAS)


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, bias: Tensor, shift: int) -> Tensor:
    """Attention within windows, the grid rolled by `shift` first: (B, H, N, d) -> (B, H, N, d)."""
    sides = grid(q.shape[-2], spec.side)
    assert sides is not None
    q, k, v = (cut(t, sides, spec.side, shift) for t in (q, k, v))
    scores = products(q / math.sqrt(q.shape[-1]), k)
    count = sides[0] * sides[1] // spec.side**2
    scores = scores.unflatten(0, (-1, count)) + bias
    if shift:
        scores = hidden(scores, together(sides, spec.side, shift, q.device)[:, None])
    return joined(mixed(torch.softmax(scores, -1).flatten(0, 1), v), sides, spec.side, shift)


def cut(x: Tensor, sides: tuple[int, int], side: int, shift: int) -> Tensor:
    """(B, H, N, d) -> (B windows, H, M^2, d), windows in reading order."""
    x = x.unflatten(2, sides)
    x = torch.roll(x, (-shift, -shift), (2, 3)) if shift else x
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, x.shape[1], side * side, x.shape[-1])


def joined(x: Tensor, sides: tuple[int, int], side: int, shift: int) -> Tensor:
    """The way back of `cut`."""
    x = x.unflatten(2, (side, side)).unflatten(0, (-1, sides[0] // side, sides[1] // side))
    x = x.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
    return (torch.roll(x, (shift, shift), (2, 3)) if shift else x).flatten(2, 3)


def together(sides: tuple[int, int], side: int, shift: int, device: torch.device) -> Tensor:
    """Which places of each window were neighbours before the roll: (windows, M^2, M^2) of bool."""
    places = [torch.arange(n, device=device) for n in sides]
    parts = [(at >= len(at) - side).int() + (at >= len(at) - shift).int() for at in places]
    region = (parts[0][:, None] * 3 + parts[1])[None, None, :, :, None]
    region = cut(region.flatten(2, 3), sides, side, 0)[:, 0, :, 0]
    return region[:, :, None] == region[:, None]


def equation(q: Tensor, k: Tensor, v: Tensor, spec: Spec, bias: Tensor, shift: int) -> Tensor:
    """Dense attention whose mask and bias come of the coordinates of every pair of tokens."""
    sides = grid(q.shape[-2], spec.side)
    assert sides is not None
    n, side = q.shape[-2], spec.side
    place = torch.arange(n, device=q.device)
    at = [(place // sides[1] - shift) % sides[0], (place % sides[1] - shift) % sides[1]]
    window = at[0] // side * (sides[1] // side) + at[1] // side
    inside = at[0] % side * side + at[1] % side
    same = window[:, None] == window
    for axis, (coordinate, rolled) in enumerate(zip((place // sides[1], place % sides[1]), at, strict=True)):
        apart = (coordinate[:, None] - coordinate) != (rolled[:, None] - rolled)
        same &= ~apart if sides[axis] else same

    def biased(scores: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return scores + bias[:, inside[i], inside[j]]

    return attention(q, k, v, lambda i, j: same[i, j], bias=biased)


def cost(shape: Shape, spec: Spec) -> Cost:
    """M^2 keys for every query; the scores move in memory, with the bias added; cutting and joining copy."""
    keys = spec.side**2
    scores = shape.batch * shape.heads * shape.tokens * keys
    return Cost(scores * 2 * shape.head_dim, 3 * shape.given + 6 * scores, shape.given + 3 * scores)
