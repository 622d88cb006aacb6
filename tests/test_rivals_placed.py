"""Rival methods where tokens have places: a decoder with grouped keys, and a ViT with rotary embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import rivals
import tiny
import torch
from rivals import EXACT, Asked
from test_decoders import LENGTH, attention, normed, pruned_case, subject, turned  # noqa: F401
from test_reduction import pruning
from tiny import FAMILIES, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli import registry
from repshift_cli.attention import flash, vanilla
from repshift_cli.kernels.sdpa import AttentionCall, heard_by
from repshift_cli.models.base.decoder import next_logits
from repshift_cli.records import Subject, call

PREFIX, SUFFIX = 3, 2


def last_row(call: AttentionCall, b: int) -> list[float]:
    """The mean over heads of the last token's row, which sees all."""
    q, k = call.query[b, :, -1].tolist(), call.key[b].tolist()
    rows = []
    for head, query in enumerate(q):
        scores = torch.tensor([rivals.dot(query, key) for key in k[head * len(k) // len(q)]], dtype=torch.float64)
        rows.append((scores / len(query) ** 0.5).softmax(0).tolist())
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def stay_of(name: str, x: Tensor, asked: AttentionCall, b: int, keep: float) -> list[int]:
    """The rows of one prompt that stay, the protected ends among them."""
    rows = x.tolist()
    inner = rows[: len(rows) - SUFFIX]
    if name == "fastv":
        scores = last_row(asked, b)[PREFIX : len(rows) - SUFFIX]
        free = sorted(rivals.ranked(scores)[: len(scores) - rivals.leaving(len(scores), keep)])
    else:
        options = {"pivots": 4} if name == "dart" else {}
        of = Asked(inner, asked, b, [1.0] * len(inner), PREFIX, keep, 1, 4, options)
        kept = rivals.LOOPS[name](of)[0][PREFIX:]
        free = [inner.index(row) - PREFIX for row in kept]
    return [*range(PREFIX), *(i + PREFIX for i in free), len(rows) - 2, len(rows) - 1]


def by_hand(given: Subject, name: str, keep: float, layers: tuple[int, ...], calls: list[AttentionCall]) -> Tensor:
    """Every prompt's logits, by the decoder written out; what its attention was asked is told apart by block."""
    found = []
    for b, ids in enumerate(given.inputs["input_ids"]):
        x, places = given.module.model.embed_tokens.weight[ids], torch.arange(LENGTH)
        for layer, block in enumerate(given.module.model.layers, start=1):
            x = x + attention(block.self_attn, normed(x, block.input_layernorm), places)
            h = normed(x, block.post_attention_layernorm)
            x = x + block.mlp.down_proj(nn.functional.silu(block.mlp.gate_proj(h)) * block.mlp.up_proj(h))
            if layer in layers:
                stay = stay_of(name, x, calls[layer - 1], b, keep)
                x, places = x[stay], places[stay]
        found.append(given.module.lm_head(normed(x[-1], given.module.model.norm)))
    return torch.stack(found)


@pytest.mark.parametrize("name", ["fastv", "dart", "divprune"])
def test_a_decoder_is_reduced_as_written(subject: Subject, name: str) -> None:  # noqa: F811
    method = registry.load(registry.find("reduction", name))
    options = {"fastv": {"map": "rows"}, "dart": {"pivots": 4}, "divprune": {}}[name]
    outs, lengths = [], []
    for backend in (vanilla, flash):
        calls: list[AttentionCall] = []
        asked = pruned_case(name, 0.6, (1, 2)).with_options(**options)
        with pruning(subject, method, asked, backend), heard_by(calls.append):
            out = call(subject.module, subject.inputs)
        outs.append(next_logits(out))
        lengths = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
    with torch.no_grad():
        expected = by_hand(subject, name, 0.6, (1, 2), calls)
    for out in outs:
        torch.testing.assert_close(out, expected, **EXACT)
    assert lengths == [20, 14, 11, 11], "the KV cache: 15, then 9, then 6 of the tokens that may go, and 5 ends"


def test_a_merged_token_keeps_its_destinations_rotation() -> None:
    plain = FAMILIES["dinov3"]()
    made = tiny.subject(plain.module, plain.inputs)
    method = registry.load(registry.find("reduction", "tome"))
    calls: list[AttentionCall] = []
    asked = tiny.case(pruning="tome", keep=0.7, layers=(1, 2)).with_options(proportional="off")
    with pruning(made, method, asked), heard_by(calls.append):
        out = plain.compared(call(plain.module, plain.inputs))
    x, sizes = plain.embed(plain.inputs), None
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    with torch.no_grad():
        for layer, (attend, mlp) in enumerate(plain.blocks, start=1):
            x = x + attend(x, places)
            if layer < 3:
                of = (calls[layer - 1], sizes, plain.prefix, 0.7, layer, 3, {})
                marks = torch.eye(x.shape[1], dtype=torch.float64).expand(len(x), -1, -1)
                places = places.gather(1, own_rows(rivals.by_loops("tome", marks, *of)[0]))
                x, sizes = rivals.by_loops("tome", x, *of)
            x = x + mlp(x)
    torch.testing.assert_close(out, plain.finish(x), **EXACT)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What timm's blocks are written as, of small models; skips where there is no timm."""
    import test_timm

    small = test_timm.small.__wrapped__(monkeypatch)
    next(small)
    yield test_timm
    next(small, None)


def test_a_timm_model_with_rotary_embeddings_is_merged_as_written(written: Any) -> None:
    name = "eva02_tiny_patch14_224"
    made = written.subject(name, 2)
    made.module.double()
    size = written.size_of(name)
    made = replace(made, inputs=(tiny.pixels(2, 3, size, size),))
    m, p, calls = made.module, made.prefix, []
    with torch.no_grad():
        x, sizes = written.embedded(m, made.inputs[0]), None
        places = torch.arange(made.tokens).expand(len(x), -1)
        asked = tiny.case(pruning="tome", keep=0.7, layers=(1, 2)).with_options(proportional="off")
        with pruning(made, registry.load(registry.find("reduction", "tome")), asked, flash), heard_by(calls.append):
            out = call(m, made.inputs)
        for layer, b in enumerate(m.blocks, start=1):
            x = written.eva_block(b, x, written.of_places(written.shared_rope(m, layer), places.tolist(), p))[0]
            if layer < 3:
                of = (calls[layer - 1], sizes, p, 0.7, layer, 3, {})
                marks = torch.eye(x.shape[1], dtype=torch.float64).expand(len(x), -1, -1)
                places = places.gather(1, own_rows(rivals.by_loops("tome", marks, *of)[0])[:, p:] - p)
                x, sizes = rivals.by_loops("tome", x, *of)
            gate, inner = b.mlp.fc1(b.norm2(x)).chunk(2, -1)
            x = x + b.mlp.fc2(nn.functional.silu(gate) * inner)
        torch.testing.assert_close(out, written.mean_head(m, x), **EXACT)


def test_a_block_that_is_asked_first_has_its_own_arguments_cut() -> None:
    """MCTF reduces before the block, whose rotations are then those of the tokens left, and merges twice."""
    plain, options = FAMILIES["dinov3"](), {**rivals.METHODS["mctf"].options, "ahead": "again", "proportional": "off"}
    made, calls = tiny.subject(plain.module, plain.inputs), []
    asked = tiny.case(pruning="mctf", keep=0.7, layers=(1, 2)).with_options(**options)
    with pruning(made, rivals.METHODS["mctf"].method, asked), heard_by(calls.append):
        out = plain.compared(call(plain.module, plain.inputs))
    x, sizes = plain.embed(plain.inputs), [[1.0] * (4 + plain.tokens)] * len(plain.inputs["pixel_values"])
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    with torch.no_grad():
        for layer, (attend, mlp) in enumerate(plain.blocks, start=1):
            if layer < 3:
                each = rivals.asked_each(x, calls[2 * layer - 2], sizes, plain.prefix, 0.7, layer, 3, options)
                stay = torch.tensor([[group[0] for group in rivals.mctf_groups(a)[0]] for a in each])
                done = [rivals.mctf(a) for a in each]
                x, sizes = torch.tensor([rows for rows, _ in done], dtype=x.dtype), [new for _, new in done]
                places = places.gather(1, stay)
            x = x + attend(x, places)
            x = x + mlp(x)
    torch.testing.assert_close(out, plain.finish(x), **EXACT)


def own_rows(marks: Tensor) -> Tensor:
    """Of what each row is a mean of (B, k, N), the row that the others went into: the odd one, where there is one."""
    odd = torch.arange(marks.shape[2]) % 2
    return ((marks > 0) * (1 + odd)).argmax(2)
