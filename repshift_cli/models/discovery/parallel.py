"""Blocks whose branches stand side by side: x^ = x + A(LN(x)) + M(LN(x)), as in GPT-J and ViT-22B."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repshift_cli.models.discovery.arguments import Given, attends
from repshift_cli.models.discovery.scaled import Call

Paths = tuple[str, str, str]
"""Of attention, of what reads the state before the MLP (the block itself, ""), and of the MLP, within a block."""


def parallel_branches(
    block: nn.Module, calls: Sequence[Call], x: Tensor, out: Tensor | None, tokens: Tensor, given: Given, prefix: int
) -> Paths | None:
    """The two modules whose outputs are added to x, in whichever order, to give the block's output bit for bit.

    The one whose tokens change with the others is attention; None where that is both or neither, or cannot be told.
    """
    fitting = [call for call in reversed(calls) if call[2].shape == x.shape]  # a module comes before what is inside it
    for number, (late, _, m) in enumerate(fitting):
        for early, _, a in fitting[number + 1 :]:
            if out is None or not any(torch.equal(total, out) for total in (x + a + m, x + m + a, x + (a + m))):
                continue
            mixing = [attends(block, block.get_submodule(p), x, tokens, given, prefix) for p in (early, late)]
            if mixing == [True, False]:
                return early, "", late
            if mixing == [False, True]:
                return late, "", early
    return None
