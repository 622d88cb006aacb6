"""A tiny model whose answer is known: which tokens carry the label, and at which block the shift tells them.

Tokens (B, 16, 8): channel 0 marks those that carry the label (4 of 16, at random places), 1 and 2 hold the label, 3 is
noise. After block 1 the marked tokens are those that the MLP changes most, after block 2 those that it changes least;
at block 3 its change is noise. The logits are sums over the marked tokens, so that only dropping these changes
anything.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.discovery.recognised import recognised
from repshift_cli.records import Facts, Metric, Record, Subject
from repshift_cli.sweep.plan import Backend
from repshift_cli.tuning.costs import load_of
from repshift_cli.tuning.engine import Session
from repshift_cli.tuning.grounds import Batch, of_batches
from repshift_cli.tuning.order import Order
from repshift_cli.tuning.planner import Planner

TOKENS, MARKED, WIDTH, DEPTH, BATCH, BATCHES = 16, 4, 8, 4, 8, 8
LATENCY = Metric("latency", "latency", "ms", "lower", "median", "timed", "Of a clock that counts.")
SPEEDUP = Metric("speedup_vs_unpruned", "vs unpruned", "x", "higher", "hodges-lehmann", "paired", "Of the same clock.")


class Mixing(nn.Module):
    """A little of the noise's mean, into a channel that nothing reads."""

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.zeros_like(x)
        mixed[..., 6] = 1e-3 * (1 + x[..., 3].mean(1, keepdim=True))
        return mixed


class Change(nn.Module):
    """What one block adds: `to` is +1 for the marked tokens, -1 for the others, 0 for noise."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self.to, self.scale = to, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        chosen = {1: x[..., 0], -1: 1 - x[..., 0], 0: (97 * x[..., 3]).sin().abs()}[self.to]
        change = torch.zeros_like(x)
        change[..., 5] = (0.1 + 3 * chosen) * self.scale
        return change


class Block(nn.Module):
    def __init__(self, to: int) -> None:
        super().__init__()
        self.attention, self.middle, self.mlp = Mixing(), nn.Identity(), Change(to)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(self.middle(x))


class Planted(nn.Module):
    def __init__(self, helps: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(to) for to in ((1, -1, 0, 0) if helps else (0, 0, 0, 0)))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return (x[..., :1] * x[..., 1:3]).sum(1)


def tokens(seed: int, marked: int, first: bool = False) -> Tensor:
    """Inputs (BATCH, 16, 8), `marked` tokens of each sample carrying the label, or the `first` alone."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.zeros(BATCH, TOKENS, WIDTH)
    x[..., 3] = torch.rand(BATCH, TOKENS, generator=draw)
    places = torch.rand(BATCH, TOKENS, generator=draw).argsort(1)[:, :marked]
    places = torch.zeros_like(places[:, :1]) if first else places
    x[..., 0].scatter_(1, places, 1.0)
    directions = nn.functional.normalize(torch.randn(BATCH, TOKENS, 2, generator=draw), dim=-1)
    x[..., 1:3] = directions * x[..., :1]
    return x


def subject(helps: bool = True) -> Subject:
    module = Planted(helps).eval()
    found = recognised(module, (tokens(0, MARKED),), None)
    return replace(found, logits=lambda output: output, pooled=lambda output: output)


def session(
    order: Order, helps: bool = True, observe: Any = lambda _: None, first: bool = False, file: Path | None = None
) -> Session:  # fmt: skip
    """A search on the planted model, timed by the tokens that its blocks see; `first`: a decoder with a sink."""
    own = subject(helps)
    facts = Facts(DEPTH, TOKENS, 0, weights="own", operations=("mlp",), attention=False, causal=first)
    planner = Planner(order, "cpu", facts, Backend(None))
    marked = MARKED if helps else TOKENS
    made = [Batch(n, (tokens(1 + n, marked, first),), tuple(range(BATCH))) for n in range(BATCHES)]
    ground = of_batches(own, planner.unpruned.case, made, "cpu")
    return Session(order, ground, planner, clock(planner), clock(planner), observe, file=file)


def milliseconds(planned: Any) -> float:
    """What the clock says: exactly what the cost model can express."""
    load = load_of(planned.tokens, planned.case.layers, DEPTH, planned.case.pruning)
    return 2.0 + 0.1 * sum(load.blocks) + 0.05 * len(load.cuts)


def clock(planner: Planner) -> Any:
    def timed(cases: Any) -> dict[Any, Record]:
        plain = milliseconds(planner.unpruned)
        told = {}
        for p in [planner.unpruned, *cases]:
            ms = milliseconds(p)
            made = (LATENCY.of(*[ms] * 8), SPEEDUP.of(*[plain / ms] * 8))
            told[p.case] = Record(p.case, "ok", None, p.tokens, measurements=made)
        return told

    return timed
