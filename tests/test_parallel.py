"""Blocks whose branches stand side by side: found, and scored and cut as written out."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from test_reduction import best, pruning, shift
from tiny import WIDTH, case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli.models.discovery.blocks import NoSites, find_sites
from repshift_cli.models.discovery.explain import explained
from repshift_cli.records import call
from repshift_cli.reduction import repshift

DEPTH = 3


class Parallel(tiny.PreNorm):
    """One sum of three, in every order that libraries write it in."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order

    def branches(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(self.first(x)), self.feed(self.second(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "mlp first":
            update = self.feed(self.second(x))
            return x + update + self.mix(self.first(x))
        attention, update = self.branches(x)
        return x + (attention + update) if self.order == "branches first" else x + attention + update


ORDERS = ("in turn", "branches first", "mlp first")


def made(order: str) -> tuple[Any, tuple[Tensor]]:
    torch.manual_seed(0)
    module = tiny.roughen(tiny.PlainTransformer(lambda: Parallel(order))).double()
    return module, (tiny.pixels(2, 12, WIDTH),)


def reference(
    module: Any, tokens: Tensor, keep: float, layers: tuple[int, ...], operation: str, form: str | None
) -> Tensor:
    x = torch.cat((module.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
    for layer, b in enumerate(module.blocks, start=1):
        attention, update = b.branches(x)
        out = x + attention + update
        if layer in layers:
            seen = {"resid_pre": x, "attn_out": attention, "resid_mid": x, "mlp_out": update, "resid_post": out}
            scores = shift({name: t[:, 1:] for name, t in seen.items()}, operation, "l2", form)
            stay = [[0, *(1 + i for i in best(row, keep))] for row in scores]
            out = torch.stack([rows[places] for rows, places in zip(out, stay, strict=True)])
        x = out
    return module.head(module.norm(x[:, 0]))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("operation", "form"), [(o, f) for o in ("mlp", "attention") for f in ("paper", "update")] + [("block", None)]
)
def test_both_branches_are_scored_as_written(order: str, operation: str, form: str | None) -> None:
    module, inputs = made(order)
    subject, layers = tiny.subject(module, inputs), (1, 2)
    assert subject.sites[0].operations == ("mlp", "attention", "block") and subject.sites[0].parallel
    given = case(pruning="repshift", keep=0.6, layers=layers, operation=operation, distance="l2", form=form)
    with torch.no_grad():
        expected = reference(module, inputs[0], 0.6, layers, operation, form)
    with pruning(subject, repshift, given):
        torch.testing.assert_close(call(module, inputs), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", ORDERS)
def test_attention_is_the_branch_that_mixes(order: str) -> None:
    subject = tiny.subject(*made(order))
    site = subject.sites[0]
    assert (site.attention, site.middle, site.mlp) == (site.block.mix, site.block, site.block.feed)
    assert "side by side" in explained(subject)["branches"]["middle"]


def test_two_branches_that_both_mix_are_told_from_no_others() -> None:
    class Both(tiny.PreNorm):
        def __init__(self) -> None:
            super().__init__()
            self.feed = tiny.Attention(WIDTH, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mix(self.first(x)) + self.feed(self.second(x))

    module: nn.Module = tiny.roughen(tiny.PlainTransformer(Both)).double()
    with pytest.raises(NoSites):
        find_sites(module, (tiny.pixels(2, 12, WIDTH),))
