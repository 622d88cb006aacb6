"""What a block is given beside its hidden states and belongs to tokens, found by running the block on fewer of them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.kernels.along import along

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""


def companions(
    block: nn.Module, x: Tensor, tokens: Tensor, given: Given, prefix: int
) -> tuple[tuple[str, ...], int] | None:
    """The names of the arguments that go along with the tokens and their `spread`, or None: it takes no fewer tokens.

    `x` (B, N, C) is the block's input and `tokens` the very tensor among `given` that it is a copy of. The block must
    run on half of the tokens, another half in every second sample, and give each sample what it gives it alone: so an
    argument that is broadcast over the wrong dimension is noticed. `spread` is how many dimensions of size one what all
    samples shared needs behind the batch: 0, or 1 where the block lays it over (B, heads, N, d).
    """
    args, kwargs = given
    names = [*inspect.signature(block.forward).parameters, *map(str, range(len(args)))]
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    kept = max(1, prefix, x.shape[1] // 2)
    leading, trailing = _halves(x, kept, prefix)
    for spread in (0, 1):

        def shorter(positions: Tensor, spread: int = spread) -> dict[str, Any]:
            rows = x.take_along_dim(positions.unsqueeze(-1), 1)
            values = {
                n: along(v, n, x.shape[1], prefix, positions, spread) for n, v in named.items() if v is not tokens
            }
            return {n: rows if named[n] is tokens else values[n] for n in named}

        one = shorter(leading)
        beside = tuple(n for n, v in named.items() if v is not tokens and _differ(v, one[n]))
        out = _run(block, one, args, kwargs)
        if out is None or out.shape != (len(x), kept, x.shape[2]):
            continue
        if not beside or len(x) == 1 or _same_first(out, _run(block, shorter(trailing), args, kwargs)):
            return beside, spread
    return None


def _halves(x: Tensor, kept: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Positions (B, kept): the leading ones everywhere; then, in all but the first sample, prefix and trailing ones."""
    length = x.shape[1]
    leading = torch.arange(kept, device=x.device)
    trailing = torch.arange(length - kept, length, device=x.device)
    trailing[:prefix] = leading[:prefix]
    others = trailing.expand(len(x) - 1, -1)
    return leading.expand(len(x), -1), torch.cat((leading.unsqueeze(0), others))


def _run(block: nn.Module, named: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The block's (B, N, C) output, or None where it does not run."""
    try:
        with torch.inference_mode():
            output = block(*list(named.values())[: len(args)], **{name: named[name] for name in kwargs})
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None
    values = output if isinstance(output, (tuple, list)) else (output,)
    return next((v for v in values if isinstance(v, Tensor) and v.ndim == 3), None)


def _same_first(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.allclose(one[0], other[0], rtol=1e-3, atol=1e-3 * float(one[0].abs().max()))


def _differ(one: Any, other: Any) -> bool:
    """Whether `along` changed anything: containers come back as new ones in any case."""
    if isinstance(one, (tuple, list)):
        return any(map(_differ, one, other))
    return any(_differ(one[k], other[k]) for k in one) if isinstance(one, dict) else one is not other
