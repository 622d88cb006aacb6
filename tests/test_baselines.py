"""The back ends that users compare with: what torch picks unforced, and the library's own materialised attention."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from test_reduction import reference, shift
from tiny import case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli.attention import eager, sdpa
from repshift_cli.benchmark import builder
from repshift_cli.benchmark.verification import WrongKernel, judge, verify, verify_library, verify_none
from repshift_cli.kernels.sdpa import heard_by
from repshift_cli.models.base.transformers import eager_attention
from repshift_cli.records import Facts, Step, call
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.plan import Backend, expand

HEADS = {"siglip": 1}
"""Attention outside the blocks: a head that pools by it."""
HALF: dict[str, Any] = {"keep": 0.5, "layers": (1,), "operation": "mlp", "distance": "l2", "form": "paper"}


def step(plain: tiny.Plain, attention: str, **changes: Any) -> Step:
    """A step as `bench` makes it of a tiny model."""
    subject = replace(tiny.subject(plain.module, plain.inputs), eager=partial(eager_attention, plain.module))
    return builder.eager_step(case(attention=attention, **changes), subject)


def ran(made: Step, plain: tiny.Plain) -> Tensor:
    with made.active():
        return plain.compared(made.forward())


@pytest.mark.parametrize("family", ["vit", "dinov3", "siglip", "vivit", "deit_distilled"])
def test_the_librarys_own_attention_computes_the_same_cut_and_uncut(family: str) -> None:
    plain, calls = tiny.FAMILIES[family](), list[None]()
    whole, cut = step(plain, "eager"), step(plain, "eager", pruning="repshift", **HALF)
    with torch.no_grad():
        expected = plain.forward()
    pruned = reference(plain, 0.5, (1,), lambda seen: shift(seen, "mlp", "l2", "paper"))
    with heard_by(lambda _: calls.append(None)):
        torch.testing.assert_close(ran(whole, plain), expected, rtol=0, atol=1e-5)  # its softmax is in fp32
        torch.testing.assert_close(ran(cut, plain), pruned, rtol=0, atol=1e-5)
        assert not calls
        call(plain.module, plain.inputs)
    assert len(calls) == tiny.DEPTH, "afterwards it goes through torch's function again"
    assert builder._verified(whole) == builder._verified(cut)
    assert builder._verified(cut) == f"softmax ×{tiny.DEPTH + HEADS.get(family, 0)}"


def test_attention_that_is_torchs_after_all_is_refused() -> None:
    plain = tiny.vit()
    with pytest.raises(WrongKernel, match="still calls torch's attention 3 times"):
        verify_library(step(plain, "vanilla"), eager.OPS)

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    given: Any = SimpleNamespace(module=Nothing(), inputs=(torch.zeros(1, 2, 3),))
    bare = Step(case(), given, torch.inference_mode, lambda: given.module(*given.inputs), given.module)
    with pytest.raises(WrongKernel, match="ran no softmax"):
        verify_library(bare, eager.OPS)


def test_attention_written_by_hand_is_named_so() -> None:
    class ByHand(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x @ x.transpose(-1, -2)).softmax(-1) @ x

    module, x = ByHand(), torch.randn(1, 3, 4)
    given: Any = SimpleNamespace(module=module, inputs=(x,))
    made = Step(case(attention="none"), given, torch.inference_mode, lambda: module(x), module)
    assert verify_none(made) == "written by hand: softmax ×1"
    still = replace(made, forward=lambda: torch.relu(x))
    assert verify_none(still) == "no attention"


def test_what_torch_picks_is_recorded() -> None:
    plain = tiny.vit()
    assert verify(step(plain, "sdpa"), sdpa.OPS, sdpa.KERNELS) == f"flash_attention_for_cpu ×{tiny.DEPTH}"
    ops = Counter({"aten::_scaled_dot_product_efficient_attention": 8, "aten::_scaled_dot_product_attention_math": 4})
    assert judge(12, ops, Counter(), sdpa.OPS, sdpa.KERNELS) == "efficient_attention + attention_math ×12"


def test_a_model_without_a_library_is_refused_its_own_attention() -> None:
    backends = {"eager": Backend(eager.OFFERS), "sdpa": Backend(sdpa.OFFERS)}
    for has, refused in ((True, [None, None]), (False, ["m has no attention of its library's own", None])):
        facts = Facts(depth=12, tokens=196, prefix=1, eager=has)
        axes = Axes(model=("m",), variant=("eager", "sdpa"))
        planned = expand(axes, "cpu", lambda *_, facts=facts: facts, backends, {})
        assert [p.refused and p.refused.partition(" for ")[0] for p in planned] == refused
