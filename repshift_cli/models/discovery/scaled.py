"""Branches that a block scales by parameters of its own (LayerScale written as bare parameters), to be named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Call = tuple[str, Tensor, Tensor]
"""A module's path inside its block, its input and its output."""


def scaled_branches(calls: Sequence[Call], x: Tensor, out: Tensor) -> dict[str, str]:
    """`attention`, `middle` and `mlp` of a block that computes x' = x + a A and x'' = x' + m M, or nothing.

    a and m are one number for each channel, the same for all tokens, or one number in all.
    """
    for start, (middle, state, _) in enumerate(calls):
        attention = _scaling(calls[:start], x, state)
        mlp = _scaling(calls[start:], state, out)
        if attention is not None and mlp is not None:
            return {"attention": attention, "middle": middle, "mlp": mlp}
    return {}


def _scaling(calls: Sequence[Call], before: Tensor, after: Tensor) -> str | None:
    """The last module whose output, each channel times a number, is what was added."""
    if after.shape != before.shape:
        return None
    added = (after - before).float()
    for path, _, result in reversed(calls):
        if result.shape != before.shape:
            continue
        branch = result.float()
        scale = (added * branch).sum((0, 1)) / (branch * branch).sum((0, 1)).clamp_min(1e-12)
        if float((added - scale * branch).norm()) < 1e-3 * float(added.norm()):
            return path
    return None
