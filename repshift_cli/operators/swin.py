"""Swin's windows: M x M squares of the token grid, each attending within itself, with relative position bias.

softmax(s q k^T + B) v within each window; the windows are the batch.
"""

from __future__ import annotations

from torch import Tensor

from repshift_cli.operators.base import windows
from repshift_cli.operators.base.spec import Engine, Spec
from repshift_cli.operators.base.windows import arrange, cost, refused

PAPER = "Liu et al. 2021, arXiv 2103.14030"
CLASS = "masked"
CAUSAL = (False,)

__all__ = ["arrange", "cost", "refused"]


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec, bias: Tensor) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d), bias (H, M^2, M^2) -> (B, H, N, d)."""
    return windows.attend(q, k, v, spec, bias, shift=0)


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec, bias: Tensor) -> Tensor:
    """The equation."""
    return windows.equation(q, k, v, spec, bias, shift=0)


ENGINES = {"plain": Engine(attend)}
