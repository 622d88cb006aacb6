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
    samples shared needs behind the batch: 0, or 1 where the block lays it over (B, heads, N, d); -1 where what looks
    like the batch is none (as many heads as samples).
    """
    kept = max(1, prefix, x.shape[1] // 2)
    leading, trailing = _halves(x, kept, prefix)
    for spread in (0, 1, -1):
        one = _placed(block, x, tokens, given, prefix, leading, spread)
        named = _named(block, given)
        beside = tuple(n for n, v in named.items() if v is not tokens and _differ(v, one[n]))
        seen = _run(block, one, given, x, kept)
        if seen is None:
            continue
        if not beside or len(x) == 1:
            return beside, spread
        other = _run(block, _placed(block, x, tokens, given, prefix, trailing, spread), given, x, kept)
        if other is not None and len(seen) == len(other) and all(map(_same_first, seen, other)):
            return beside, spread
    return None


def interchangeable(block: nn.Module, x: Tensor, tokens: Tensor, given: Given, prefix: int, spread: int) -> bool:
    """Whether the block takes its tokens for a set and mixes them: then its output is that of a transformer's block.

    Tokens that change places (prefix ones stay) must come out the same in their new places, each of them changed, and
    fewer tokens must give other outputs; this is judged by the modules inside as well, for LayerScale hides what a
    branch does.
    """
    length = x.shape[1]
    moved = torch.randperm(length - prefix, generator=torch.Generator().manual_seed(0)) + prefix
    places = torch.cat((torch.arange(prefix), moved)).to(x.device).expand(len(x), -1)
    half, same = places[:, : max(1, prefix, length // 2)], torch.arange(length, device=x.device).expand(len(x), -1)
    runs = [
        _run(block, _placed(block, x, tokens, given, prefix, rows, spread), given, x, rows.shape[1])
        for rows in (same, places, half)
    ]
    first, second, fewer = runs
    if first is None or second is None or fewer is None or not len(first) == len(second) == len(fewer):
        return False
    if bool((first[-1] == x)[:, prefix:].all(2).any()):
        return False
    alike = all(_close(_at(one, places), other) for one, other in zip(first, second, strict=True))
    return alike and not all(_close(_at(one, half), other) for one, other in zip(first, fewer, strict=True))


def _at(rows: Tensor, positions: Tensor) -> Tensor:
    return rows.take_along_dim(positions.unsqueeze(-1), 1)


def _close(one: Tensor, other: Tensor) -> bool:
    """Equal within the rounding of sums in another order."""
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float64) else 3e-2
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(one.abs().max()))


def _named(block: nn.Module, given: Given) -> dict[str, Any]:
    args, kwargs = given
    names = [*inspect.signature(block.forward).parameters, *map(str, range(len(args)))]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _placed(
    block: nn.Module, x: Tensor, tokens: Tensor, given: Given, prefix: int, positions: Tensor, spread: int
) -> dict[str, Any]:
    """The block's arguments by name, with the tokens at `positions` (B, k) and what belongs to them."""
    named, length = _named(block, given), x.shape[1]
    return {
        n: _at(x, positions) if v is tokens else along(v, n, length, prefix, positions, spread)
        for n, v in named.items()
    }


def _halves(x: Tensor, kept: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Positions (B, kept): the leading ones everywhere; then, in all but the first sample, prefix and trailing ones."""
    length = x.shape[1]
    leading = torch.arange(kept, device=x.device)
    trailing = torch.arange(length - kept, length, device=x.device)
    trailing[:prefix] = leading[:prefix]
    others = trailing.expand(len(x) - 1, -1)
    return leading.expand(len(x), -1), torch.cat((leading.unsqueeze(0), others))


def _run(block: nn.Module, named: dict[str, Any], given: Given, x: Tensor, kept: int) -> list[Tensor] | None:
    """What the modules inside put out for each token, (B, kept, ...), the block's own (B, kept, C) last.

    None where the block does not run or gives something else.
    """
    seen, handles = list[Tensor](), []

    def see(module: Any, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 3 and output.shape[:2] == (len(x), kept):
            seen.append(output.clone())

    try:
        handles += [m.register_forward_hook(see) for m in block.modules() if m is not block]
        with torch.inference_mode():
            args, kwargs = given
            output = block(*list(named.values())[: len(args)], **{name: named[name] for name in kwargs})
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None
    finally:
        for handle in handles:
            handle.remove()
    values = output if isinstance(output, (tuple, list)) else (output,)
    out = next((v for v in values if isinstance(v, Tensor) and v.ndim == 3), None)
    return [*seen, out] if out is not None and out.shape == (len(x), kept, x.shape[2]) else None


def _same_first(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one[0], other[0], rtol=1e-3, atol=1e-3 * float(one[0].abs().max()))


def _differ(one: Any, other: Any) -> bool:
    """Whether `along` changed anything: containers come back as new ones in any case."""
    if isinstance(one, (tuple, list)):
        return any(map(_differ, one, other))
    return any(_differ(one[k], other[k]) for k in one) if isinstance(one, dict) else one is not other
