"""Linear attention's sums over the past: features, chunks, states in at least float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64


def features(x: Tensor) -> Tensor:
    """phi = elu + 1, positive (Katharopoulos et al. 2020, equation 7)."""
    return F.elu(x) + 1


def wide(x: Tensor) -> Tensor:
    """Sums over thousands of tokens are kept in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def with_ones(v: Tensor) -> Tensor:
    """The values and a column of ones, whose sum is the normaliser: (..., d) -> (..., d + 1)."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def normalised(out: Tensor) -> Tensor:
    """The sums divided by that of the ones: (..., d + 1) -> (..., d)."""
    return out[..., :-1] / out[..., -1:]


def chunked(x: Tensor, size: int = CHUNK) -> Tensor:
    """(B, H, N, d) -> (B, H, chunks, size, d), padded behind with zeros, which add nothing to a sum."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))


def lower(size: int, device: torch.device) -> Tensor:
    """The causal mask within a chunk."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()
