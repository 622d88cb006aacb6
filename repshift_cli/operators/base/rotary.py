"""Rotary positions (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotated(x: Tensor, places: Tensor | None = None, base: float = 10000.0) -> Tensor:
    """x (..., N, d) with each pair of dims (m, m + d / 2) turned by place * base^(-2m / d); d is even."""
    half = x.shape[-1] // 2
    if places is None:
        places = torch.arange(x.shape[-2], device=x.device)
    speeds = base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angles = places.double()[:, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
