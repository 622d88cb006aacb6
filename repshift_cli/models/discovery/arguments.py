"""What a block is given beside its hidden states and belongs to tokens, found by running it on fewer and on mixed ones.

A block may be cut where it takes fewer tokens, and where it tells their places by its arguments alone: then it gives
mixed tokens, with the arguments mixed alike, the mixed output. One that counts its tokens by itself (rotary embeddings
of `arange(length)`, a table of biases sliced by length) would go on as if nothing had been cut: wrong in silence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.kernels.along import along, biased_along
from repshift_cli.kernels.sdpa import Answer, AttentionCall, watched_by

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""

WHOLE = "do not run on a part of their tokens: they need the whole grid, or a mask or positions of its size"
PLACES = (
    "tell their tokens' places by themselves, not by an argument that could be cut along (positions or biases made "
    "inside, a convolution, a scan), or are given one whose shape does not tell its tokens"
)
"""What is wrong with blocks that cannot be cut: it follows `its blocks (ViTLayer)`."""


@dataclass(frozen=True)
class Companions:
    """`Subject.companions`, `spread` and `biased` of a block, or `unfit`: why its tokens cannot be dropped.

    `causal` blocks have an order of their own, so whether they count their tokens beyond it cannot be told this way.
    """

    names: tuple[str, ...] = ()
    spread: int = 0
    causal: bool = False
    unfit: str | None = None
    biased: bool = False


@dataclass(frozen=True)
class Trial:
    """One block with the arguments of a forward: `tokens` is the one among `given` that x (B, N, C) is a copy of.

    `inner` are modules inside it whose outputs are looked at beside the block's. `biased`: the biases that its
    attention makes for all pairs of tokens are cut along.
    """

    block: nn.Module
    inner: tuple[nn.Module, ...]
    x: Tensor
    tokens: Tensor
    given: Given
    prefix: int
    biased: bool = False

    def named(self) -> dict[str, Any]:
        """The arguments by name; positional ones that have none (`*args`) by number."""
        args, kwargs = self.given
        names = [*inspect.signature(self.block.forward).parameters, *map(str, range(len(args)))]
        return {**dict(zip(names, args, strict=False)), **kwargs}

    def at(self, positions: Tensor, spread: int) -> dict[str, Any]:
        """The arguments with the tokens at `positions` (B, k) only."""
        rows, named = self.x.take_along_dim(positions.unsqueeze(-1), 1), self.named()
        length = self.x.shape[1]
        return {n: rows if v is self.tokens else along(v, n, length, self.prefix, positions, spread)
                for n, v in named.items()}  # fmt: skip

    def run_at(self, positions: Tensor, spread: int) -> Ran:
        """`run` with the tokens at `positions` (B, k) only."""
        length = self.x.shape[1]

        def cut(call: AttentionCall, answer: Answer) -> Tensor:
            # a table of biases that the block slices by its number of tokens would be that of the first ones
            if call.attn_mask is not None and call.attn_mask.shape[-2:] != (length, length):
                raise ValueError("biases of another size than that of all tokens")
            return answer(biased_along(call, length, positions))

        with watched_by(cut) if self.biased else nullcontext():
            return self.run(self.at(positions, spread))

    def run(self, named: dict[str, Any]) -> Ran:
        """The block's (B, N, C) output and those of the modules inside, or None where it does not run."""
        args, kwargs = self.given
        seen: list[Tensor | None] = []
        hooks = [m.register_forward_hook(lambda m, a, out: seen.append(_copy_of(out))) for m in self.inner]
        try:
            with torch.inference_mode():
                output = self.block(*list(named.values())[: len(args)], **{name: named[name] for name in kwargs})
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None
        finally:
            for hook in hooks:
                hook.remove()
        rows = rows_of(output)
        return None if rows is None else (rows, seen)


Ran = tuple[Tensor, list[Tensor | None]] | None
"""What `Trial.run` gives."""


def companions(
    block: nn.Module, inner: tuple[nn.Module, ...], x: Tensor, tokens: Tensor, given: Given, prefix: int
) -> Companions:
    """The arguments that go along with the tokens, from a few runs of the block; `inner` is its attention, if known.

    Every sample gets other tokens, so an argument that is cut at the wrong dimension or laid over the wrong one is
    noticed. `spread` is how many dimensions of size one what all samples shared needs behind the batch: 0, or 1 where
    the block lays it over (B, heads, N, d); -1 where what looks like the batch is none (as many heads as samples).
    """
    trial = Trial(block, inner, x, tokens, given, prefix)
    found = _along(trial)
    if found.unfit is None:
        return found
    biased = _along(replace(trial, biased=True))
    return replace(biased, biased=True) if biased.unfit is None and not biased.causal else found


def _along(trial: Trial) -> Companions:
    running = [found for spread in (0, 1, -1) if (found := _on_fewer(trial, spread)) is not None]
    for found in running:
        if _equivariant(trial, found.spread):
            return found
    if not running:
        return Companions(unfit=WHOLE)
    if not _causal(trial):
        return Companions(running[0].names, running[0].spread, unfit=PLACES)
    apart = next((f for f in running if _samples_apart(trial, f.spread)), None)
    return Companions(apart.names, apart.spread, causal=True) if apart else Companions(unfit=WHOLE)


def mixing(
    block: nn.Module, inner: tuple[nn.Module, ...], x: Tensor, tokens: Tensor, given: Given, prefix: int, spread: int
) -> bool:
    """Whether a block changes every token behind the prefix, and by what the other tokens are, as a transformer's does.

    Judged by the modules inside as well, for LayerScale hides what a branch does.
    """
    trial = Trial(block, inner, x, tokens, given, prefix)
    alone = torch.arange(prefix + 1, device=x.device).expand(len(x), -1)
    plain, fewer = trial.run(trial.named()), trial.run_at(alone, spread)
    if plain is None or fewer is None or bool((plain[0] == x)[:, prefix:].all(2).any()):
        return False
    pairs = zip((plain[0], *plain[1]), (fewer[0], *fewer[1]), strict=True)
    return any(
        one is not None and two is not None and one.shape[:2] == x.shape[:2] and two.shape[:2] == alone.shape
        and not _close(one[:, : prefix + 1], two, one)
        for one, two in pairs
    )  # fmt: skip


def attends(block: nn.Module, inside: nn.Module, x: Tensor, tokens: Tensor, given: Given, prefix: int) -> bool | None:
    """Whether what a module inside the block puts out for the first tokens depends on the others; None: not told."""
    trial = Trial(block, (inside,), x, tokens, given, prefix)
    alone = torch.arange(prefix + 1, device=x.device).expand(len(x), -1)
    for spread in (0, 1, -1):
        plain, fewer = trial.run(trial.named()), trial.run_at(alone, spread)
        if plain is not None and fewer is not None and (one := plain[1][0]) is not None and fewer[1][0] is not None:
            return not _close(one[:, : prefix + 1], fewer[1][0], one)
    return None


def _on_fewer(trial: Trial, spread: int) -> Companions | None:
    """What was cut along with half of the tokens, or None where the block does not run on it."""
    leading, _ = _halves(trial)
    named, shorter = trial.named(), trial.at(leading, spread)
    ran = trial.run_at(leading, spread)
    if ran is None or ran[0].shape != (*leading.shape, trial.x.shape[2]):
        return None
    return Companions(tuple(n for n, v in named.items() if v is not trial.tokens and _differ(v, shorter[n])), spread)


def _halves(trial: Trial) -> tuple[Tensor, Tensor]:
    """Positions (B, k): the leading ones everywhere; then, in all but the first sample, prefix and trailing ones."""
    batch, length, _ = trial.x.shape
    kept = max(1, trial.prefix, length // 2)
    leading = torch.arange(kept, device=trial.x.device)
    trailing = torch.arange(length - kept, length, device=trial.x.device)
    trailing[: trial.prefix] = leading[: trial.prefix]
    others = trailing.expand(batch - 1, -1)
    return leading.expand(batch, -1), torch.cat((leading.unsqueeze(0), others))


def _equivariant(trial: Trial, spread: int) -> bool:
    """Whether mixed tokens (behind the prefix, in each sample otherwise) give the mixed output."""
    batch, length, _ = trial.x.shape
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(length - trial.prefix, generator=generator) for _ in range(batch)])
    head = torch.arange(trial.prefix).expand(batch, -1)
    positions = torch.cat((head, order + trial.prefix), dim=1).to(trial.x.device)

    def mixed(rows: Tensor) -> Tensor:
        return rows.take_along_dim(positions.unsqueeze(-1), 1)

    return _alike(trial, trial.run(trial.named()), trial.run_at(positions, spread), mixed)


def _causal(trial: Trial) -> bool:
    """Whether the first half of the tokens comes out as it does with other tokens behind it."""
    half = trial.x.shape[1] // 2
    other = torch.cat((trial.x[:, :half], trial.x[:, half:].flip(-1)), dim=1)
    named = {n: other if v is trial.tokens else v for n, v in trial.named().items()}
    return _alike(trial, trial.run(trial.named()), trial.run(named), lambda rows: rows, half)


def _samples_apart(trial: Trial, spread: int) -> bool:
    """Whether the first sample comes out the same where the other samples keep other tokens."""
    one, other = (trial.run_at(positions, spread) for positions in _halves(trial))
    return one is not None and other is not None and _close(one[0][:1], other[0][:1], one[0])


def _alike(trial: Trial, plain: Ran, other: Ran, mixed: Callable[[Tensor], Tensor], most: int | None = None) -> bool:
    """Whether two runs give the same but for rounding, the first one `mixed`: what the block adds and modules inside.

    Looked at on its own, what the mixer gives is not drowned by the rounding of the sums.
    """
    if plain is None or other is None or plain[0].shape != trial.x.shape or other[0].shape != trial.x.shape:
        return False
    expected = mixed(plain[0])[:, :most]
    rounding = 2 * torch.finfo(trial.x.dtype).eps * _lengths(expected)
    if not _close(expected, other[0][:, :most], plain[0] - trial.x, rounding):
        return False
    return all(
        one is None or two is None or one.shape[:2] != trial.x.shape[:2] or two.shape != one.shape
        or _close(mixed(one)[:, :most], two[:, :most], one)
        for one, two in zip(plain[1], other[1], strict=True)
    )  # fmt: skip


def _close(one: Tensor, other: Tensor, scale: Tensor, rounding: Tensor | float = 0.0) -> bool:
    """Whether no token (B, N, C) differs by more than a thousandth, or eight roundings, of the mean one of `scale`."""
    share = max(1e-3, 8 * torch.finfo(one.dtype).eps)
    return bool((_lengths(one - other) <= share * _lengths(scale).mean() + rounding).all())


def _lengths(rows: Tensor) -> Tensor:
    return rows.nan_to_num().float().norm(dim=-1)


def rows_of(value: Any) -> Tensor | None:
    """The first (B, N, C) tensor of a call's arguments or result."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return next((v for v in values if isinstance(v, Tensor) and v.ndim == 3), None)


def _copy_of(output: Any) -> Tensor | None:
    """A copy, for what is added in place behind the module."""
    rows = rows_of(output)
    return None if rows is None else rows.clone()


def _differ(one: Any, other: Any) -> bool:
    """Whether `along` changed anything: containers come back as new ones in any case."""
    if isinstance(one, (tuple, list)):
        return any(map(_differ, one, other))
    return any(_differ(one[k], other[k]) for k in one) if isinstance(one, dict) else one is not other
