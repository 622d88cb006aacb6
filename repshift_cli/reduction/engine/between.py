"""Reducing tokens between attention and MLP: the state x' that the block adds its MLP branch to is the reduced one.

The block holds x' = x + A as a local value, which no hook can change. So A, the attention branch's output, reduces the
sum in which it is added (`fused_add.Awaiting`): then the norm, the MLP and the second sum see the rows that are left,
as in a forward written so. Where that is not followed (compiled code, a block that sums otherwise) the norm is given
the reduced rows, the second sum is worked out here, and what the block puts out is left unused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from repshift_cli.records import Site, UsageError
from repshift_cli.reduction.engine.fused_add import awaiting_sum
from repshift_cli.reduction.engine.state import tokens_of, with_tokens

Reduce = Callable[[Tensor], Tensor]
"""(B, N, C) -> (B, k, C), once in each forward."""


def hooks(site: Site, model: str, reduce: Reduce) -> Iterator[Any]:
    """Hooks that give the block `reduce(x')` in the place of x'; UsageError where it has no x'."""
    if site.attention is None or site.mlp is None or site.middle is None or site.parallel:
        raise UsageError(
            f"the method reduces tokens between attention and MLP, and the blocks of {model} have no state there"
        )
    early: list[bool] = []
    beside: list[Tensor] = []

    def at_attention(module: Any, args: Any, output: Any) -> Any:
        branch = tokens_of(output)
        early[:], beside[:] = [], []
        if torch.compiler.is_compiling() or type(branch) is not Tensor:
            return None
        return with_tokens(output, branch, awaiting_sum(branch, summed))

    def summed(middle: Tensor, branch: Tensor) -> Tensor:
        early.append(True)
        return reduce(middle + branch)

    def at_middle(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if early:
            return None
        hidden = tokens_of((*args, *kwargs.values()))
        if site.post_norm:
            raise UsageError(f"{model} norms its sums, so that its x' is not seen in compiled code; measure it eager")
        beside.append(reduce(hidden))
        fewer = tuple(beside[0] if v is hidden else v for v in args)
        return fewer, {name: beside[0] if v is hidden else v for name, v in kwargs.items()}

    def at_mlp(module: Any, args: Any, output: Any) -> Any:
        if not beside:
            return None
        branch = tokens_of(output)
        beside[0] = beside[0] + branch
        return with_tokens(output, branch, branch[:, :1])  # what it is added to is left unused

    def at_end(module: Any, args: Any, output: Any) -> Any:
        return with_tokens(output, tokens_of(output), beside.pop()) if beside else None

    yield site.attention.register_forward_hook(at_attention)
    yield site.middle.register_forward_pre_hook(at_middle, with_kwargs=True)
    yield site.mlp.register_forward_hook(at_mlp)
    yield site.block.register_forward_hook(at_end)
