"""The cut fused with the residual add: x' + MLP(LN(x')) is worked out for the rows that stay, and for no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.kernels.cut import worth_adding_late
from repshift_cli.profiling.annotations import part
from repshift_cli.reduction.engine.selection import Cut

ADDS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}


class Awaiting(Tensor):
    """A branch's output that knows what becomes of its sum. Added to a tensor of its shape it gives the rows left.

    A dropout that is off leaves it as it is; to anything else it is a plain tensor, so that a block that does something
    else with it is cut at its end.
    """

    added: Callable[[Tensor, Tensor], Tensor]
    plain: Tensor
    """The same as a plain tensor: to ask this one for its shape goes through `__torch_function__` too."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ADDS and len(args) == 2 and not kwargs:
            middle, branch = args if isinstance(args[1], Awaiting) else args[::-1]
            if type(middle) is Tensor and middle.shape == branch.plain.shape:
                return branch.added(middle, branch.plain)
        if func is F.dropout and not (kwargs or {}).get("training", True):
            return args[0]
        with torch._C.DisableTorchFunctionSubclass():
            return func(*map(_plain, args), **{name: _plain(value) for name, value in (kwargs or {}).items()})


def awaiting(branch: Tensor, cut: Cut) -> Tensor:
    """The branch's output, to be cut with its sum where that moves fewer bytes; else as it is."""
    if not (cut.view or worth_adding_late(branch, cut.stay)):
        return branch

    def added(middle: Tensor, branch: Tensor) -> Tensor:
        with part("cut"):
            return cut.added(middle, branch)

    return awaiting_sum(branch, added)


def awaiting_sum(branch: Tensor, added: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The branch's output, whose sum with a state `added(state, branch)` works out."""
    later = branch.as_subclass(Awaiting)
    later.added, later.plain = added, branch
    return later


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Awaiting) else value
