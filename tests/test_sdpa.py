"""The one patch of torch's attention: who answers, changes and hears, in which order, and nothing left behind."""

import math
import re
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import one_thread  # noqa: F401
from torch import Tensor

from repshift_cli.attention import vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.kernels.sdpa import Answer, AttentionCall, answered_by, heard_by, heard_in, watched_by

SDPA = F.scaled_dot_product_attention
PACKAGE = Path(__file__).parent.parent / "repshift_cli"
q, k, v = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def zeros(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.zeros_like(query)


def test_torchs_attention_is_assigned_to_in_one_file() -> None:
    assigned = re.compile(r"scaled_dot_product_attention\s*=[^=]|setattr\(F|(patch|setattr)\(.*scaled_dot_product")
    files = [p.name for p in PACKAGE.rglob("*.py") if assigned.search(p.read_text(encoding="utf-8"))]
    assert files == ["sdpa.py"]


def test_the_last_back_end_answers_and_watchers_stand_around_it_in_the_order_entered() -> None:
    told: list[str] = []

    def watcher(name: str) -> Any:
        def watch(call: AttentionCall, answer: Answer) -> Tensor:
            told.append(f"{name} before")
            out = answer(call)
            told.append(f"{name} after")
            return out

        return watch

    with watched_by(watcher("first")), answered_by(vanilla.attend), watched_by(watcher("second")), answered_by(zeros):
        assert not F.scaled_dot_product_attention(q, k, v).any()
    assert told == ["second before", "first before", "first after", "second after"]
    assert F.scaled_dot_product_attention is SDPA


def test_a_back_end_alone_stands_there_itself() -> None:
    with answered_by(zeros):
        assert F.scaled_dot_product_attention is zeros


def test_a_listener_is_told_all_that_was_asked() -> None:
    calls: list[AttentionCall] = []
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    with heard_by(calls.append), attending(vanilla):
        F.scaled_dot_product_attention(q, k, value=v)
        F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], mask, 0.0, scale=0.5, enable_gqa=True)
        F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert calls[0].value is v and calls[0][3:] == (None, 0.0, False, None, False)
    assert calls[1].attn_mask is mask and calls[1].key.shape[1] == 2 and calls[1][4:] == (0.0, False, 0.5, True)
    assert calls[2].is_causal


@pytest.mark.parametrize("backend", [None, vanilla.attend])
def test_what_is_asked_reaches_the_answer(backend: Any) -> None:
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    asked: dict[str, Any] = {"attn_mask": mask, "scale": 0.3, "enable_gqa": True}
    plain = SDPA(q, k[:, :2], v[:, :2], **asked)
    with heard_by(lambda call: None), answered_by(backend or SDPA):
        heard = F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], **asked)
        causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(heard, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(causal, SDPA(q, k, v, mask), rtol=0, atol=1e-12)


def test_a_watcher_may_change_what_is_asked() -> None:
    """As proportional attention does: the logarithm of each token's size is added to its scores."""
    sizes = torch.tensor([1.0, 2, 1, 3, 1], dtype=torch.float64)

    def proportional(call: AttentionCall, answer: Answer) -> Tensor:
        return answer(call._replace(attn_mask=sizes.log().expand(1, 1, 5, 5)))

    weights = ((q @ k.transpose(-2, -1)) / math.sqrt(8)).exp() * sizes
    expected = weights / weights.sum(-1, keepdim=True) @ v
    for backend in (SimpleNamespace(attend=None, session=ExitStack), vanilla):
        with watched_by(proportional), attending(backend):
            out = F.scaled_dot_product_attention(q, k, v)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_an_exception_leaves_nothing_patched() -> None:
    def broken(call: AttentionCall, answer: Answer) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), answered_by(zeros), heard_by(lambda call: None), watched_by(broken):
        F.scaled_dot_product_attention(q, k, v)
    assert F.scaled_dot_product_attention is SDPA


def test_contexts_may_leave_in_any_order() -> None:
    one, other = answered_by(zeros), answered_by(vanilla.attend)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert F.scaled_dot_product_attention is vanilla.attend
    other.__exit__(None, None, None)
    assert F.scaled_dot_product_attention is SDPA


def test_the_calls_of_one_block_are_heard_apart() -> None:
    plain = tiny.vit()
    block = plain.module.vit.layers[1]
    everywhere, inside = list[AttentionCall](), list[AttentionCall]()
    with torch.inference_mode(), heard_by(everywhere.append), heard_in(block, inside.append):
        plain.module(**plain.inputs)
    assert len(everywhere) == tiny.DEPTH
    assert [call.query is everywhere[1].query for call in inside] == [True]
    assert not block._forward_pre_hooks and not block._forward_hooks


@pytest.mark.slow
def test_torch_compile_follows_listeners_that_come_anew_without_a_break() -> None:
    plain = tiny.vit()
    block, module = plain.module.vit.layers[1], plain.module
    kept: dict[str, Tensor] = {}

    def run(forward: Any) -> Tensor:
        with (
            torch.inference_mode(),
            attending(vanilla),
            heard_in(block, lambda call: kept.update(key=call.key.clone())),
        ):
            return forward(**plain.inputs).logits

    eager = run(module)
    expected = kept["key"]
    compiled = torch.compile(module, dynamic=False, fullgraph=True)
    torch.testing.assert_close(run(compiled), eager, rtol=0, atol=1e-10)
    torch.testing.assert_close(kept["key"], expected, rtol=0, atol=1e-10)
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(compiled)
    torch.testing.assert_close(kept["key"], expected, rtol=0, atol=1e-10)
