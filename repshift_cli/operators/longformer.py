"""Longformer: a window, and global tokens that see all and are seen by all; the window may be dilated.

|i - j| <= w D with (i - j) a multiple of D, or i < g, or j < g. The paper gives global tokens projections of their own;
here they use those given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.kernels.bands import banded
from repshift_cli.operators.base import flex, masks
from repshift_cli.operators.base.counts import band_cost
from repshift_cli.operators.base.reference import attention
from repshift_cli.operators.base.rows import attend_rows
from repshift_cli.operators.base.spec import Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import as_given as arrange

PAPER = "Beltagy et al. 2020, arXiv 2004.05150"
CLASS = "masked"
CAUSAL = (False, True)

__all__ = ["arrange"]


def refused(shape: Shape, spec: Spec) -> str | None:
    """The plain form has dilation or global tokens, not both: their keys lie in other blocks then."""
    if spec.dilation > 1 and spec.global_tokens:
        return "the dilated window is offered without global tokens here"
    return None


def seen(spec: Spec) -> masks.Mask:
    """The mask."""
    width = masks.window((spec.window - spec.causal) * spec.dilation + spec.causal, spec.causal)
    local = masks.both(width, lambda i, j: (i - j) % spec.dilation == 0)
    found = masks.either(local, lambda i, j: (i < spec.global_tokens) | (j < spec.global_tokens))
    return masks.both(found, masks.causal) if spec.causal else found


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d)."""
    left, right = masks.reach(spec.window, spec.causal)
    if spec.dilation > 1:
        places = [slice(r, None, spec.dilation) for r in range(min(spec.dilation, q.shape[2]))]
        return _woven([banded(q[:, :, p], k[:, :, p], v[:, :, p], left, right) for p in places], q)
    first = min(spec.global_tokens, q.shape[-2])
    out = banded(q, k, v, left, right, first, spec.causal)
    if not first:
        return out
    keys = first if spec.causal else k.shape[-2]
    rows = attend_rows(q[:, :, :first], k[:, :, :keys], v[:, :, :keys], spec.causal)
    return torch.cat([rows, out[:, :, first:]], 2)


def _woven(classes: list[Tensor], q: Tensor) -> Tensor:
    """Residue classes of places back into one sequence."""
    out = q.new_empty(*q.shape[:-1], classes[0].shape[-1])
    for place, part in enumerate(classes):
        out[:, :, place :: len(classes)] = part
    return out


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation."""
    return attention(q, k, v, seen(spec))


def cost(shape: Shape, spec: Spec) -> Cost:
    """The band's pairs and those of the global tokens (which the band has in part too)."""
    g = min(spec.global_tokens, shape.tokens)
    return band_cost(shape, *masks.reach(spec.window, spec.causal), extra_pairs=g * shape.tokens * (2 - spec.causal))


def fused_cost(shape: Shape, spec: Spec) -> Cost:
    """The same pairs with the scores on the chip."""
    return Cost(cost(shape, spec).macs, shape.given)


ENGINES = {"plain": Engine(attend), "flex": flex.engine(seen, cost=fused_cost)}
