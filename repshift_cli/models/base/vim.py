"""Vision Mamba (Zhu et al. 2024, arXiv 2401.09417) in plain torch: class token in the middle, bidirectional mixers.

It computes what the official `..._bimambav2_..._abs_pos_embed_with_midclstok_div2` models compute, under the same
parameter names, so that their checkpoints load. The official blocks pass on two streams, the mixer's output ("hidden")
and the sum of all before it ("residual"), only so that the addition fuses with the norm that follows:

    residual = residual + hidden;  hidden = mixer(norm(residual))

What the next block reads, and the final norm too, is residual + hidden. That sum is the one stream x here,
x = x + mixer(norm(x)), and a gather of its tokens gathers both. (Officially the residual is held in fp32 also where the
weights are in half precision; here x has the weights' dtype, as the other families' hidden states do.)
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from repshift_cli.kernels.scan import selective_scan

EPSILON = 1e-5
FASTEST, SLOWEST = 0.1, 0.001
"""The steps delta that a channel is initialised with lie between these two (Mamba, section 3.6)."""


def class_position(tokens: int) -> int:
    """Where the class token lies among `tokens`, itself included: in the middle, 98 of 197; after cuts likewise."""
    return (tokens - 1) // 2


class VisionMamba(nn.Module):
    """Images (B, 3, `image_size`, `image_size`) to logits (B, `classes`); the defaults are ViM-T."""

    def __init__(
        self,
        width: int = 192,
        depth: int = 24,
        image_size: int = 224,
        patch_size: int = 16,
        states: int = 16,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        patches = (image_size // patch_size) ** 2
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, patch_size, stride=patch_size)))
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + 1, width))
        self.layers = nn.ModuleList(Block(width, states, depth) for _ in range(depth))
        self.norm_f = nn.RMSNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.embed(pixel_values)
        for block in self.layers:
            x = block(x)
        return self.head(self.norm_f(x[:, class_position(x.shape[1])]))

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Patches with the class token in their middle and positions added: (B, N + 1, C)."""
        patches = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        middle = patches.shape[1] // 2
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        return torch.cat((patches[:, :middle], cls_token, patches[:, middle:]), dim=1) + self.pos_embed


class Block(nn.Module):
    """x + mixer(norm(x)), tokens (B, N, C) in scan order."""

    def __init__(self, width: int, states: int, depth: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=EPSILON)
        self.mixer = Mixer(width, states, depth)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class Mixer(nn.Module):
    """Bidirectional Mamba, "v2": a causal convolution and a scan in either direction, each with its own parameters.

    The two directions share the projections in and out; the mean of their outputs is projected (official checkpoints
    are trained with `if_divide_out`, so half the sum). Parameters of the backward direction end in `_b`.
    """

    def __init__(self, width: int, states: int, depth: int, expand: int = 2, kernel: int = 4) -> None:
        super().__init__()
        inner, rank = expand * width, math.ceil(width / 16)
        self.states, self.rank, self.kernel = states, rank, kernel
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(depth)
        self.conv1d, self.conv1d_b = (nn.Conv1d(inner, inner, kernel, groups=inner) for _ in range(2))
        self.x_proj, self.x_proj_b = (nn.Linear(inner, rank + 2 * states, bias=False) for _ in range(2))
        self.dt_proj, self.dt_proj_b = (_step_projection(rank, inner) for _ in range(2))
        decay = torch.arange(1, states + 1, dtype=torch.float32).log().repeat(inner, 1)
        self.A_log, self.A_b_log = nn.Parameter(decay), nn.Parameter(decay.clone())
        self.D, self.D_b = nn.Parameter(torch.ones(inner)), nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor) -> Tensor:
        xz = self.in_proj(x).transpose(1, 2)
        forth = self._scanned(xz, self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        back = self._scanned(xz.flip(-1), self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)
        return self.out_proj(((forth + back.flip(-1)) / 2).transpose(1, 2))

    def _scanned(
        self, xz: Tensor, conv: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, A_log: Tensor, D: Tensor
    ) -> Tensor:
        """One direction: xz (B, 2 inner, N) to (B, inner, N), gated."""
        x, z = xz.chunk(2, dim=1)
        x = F.silu(conv(F.pad(x, (self.kernel - 1, 0))))
        rank, states = self.rank, self.states
        step, B, C = x_proj(x.transpose(1, 2)).split((rank, states, states), dim=-1)
        delta = F.linear(step, dt_proj.weight).transpose(1, 2)
        A, D, bias = -torch.exp(_wide(A_log)), _wide(D), _wide(dt_proj.bias)
        return selective_scan(x, delta, A, B.transpose(1, 2), C.transpose(1, 2), D, z, bias, True)


def _step_projection(rank: int, inner: int) -> nn.Linear:
    """The projection to delta, its bias such that softplus(bias) is log-uniform between SLOWEST and FASTEST."""
    linear = nn.Linear(rank, inner)
    step = torch.exp(torch.empty(inner).uniform_(math.log(SLOWEST), math.log(FASTEST)))
    with torch.no_grad():
        linear.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
    return linear


def _wide(values: Tensor) -> Tensor:
    """In fp32 at least, as mamba-ssm's kernel takes A, D and the bias of delta."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
