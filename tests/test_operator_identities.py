"""Identities between operators: what each must become at the ends of its settings."""

from dataclasses import replace

import pytest
import torch
from operator_cases import SPEC, attend, inputs, operator, run
from torch import Tensor

from repshift_cli.operators import dmc as dmc_operator
from repshift_cli.operators import log_linear, paged
from repshift_cli.operators.base.inputs import capturing, gaussian, planted
from repshift_cli.operators.base.reference import full
from repshift_cli.operators.base.spec import Shape, Spec
from repshift_cli.operators.base.states import features

N = 50
CAUSAL = replace(SPEC, causal=True)


def same(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> bool:
    return torch.allclose(a, b, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ["sliding", "longformer"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_as_long_as_the_sequence_is_full_attention(name: str, causal: bool) -> None:
    q, k, v = inputs(2, 4, 2, N)
    assert same(attend(name, q, k, v, replace(SPEC, causal=causal, window=N)), full(q, k, v, causal))


@pytest.mark.parametrize("changes", [{"sinks": N}, {"window": N}])
def test_streaming_with_all_sinks_or_a_whole_window_is_causal(changes: dict[str, int]) -> None:
    q, k, v = inputs(2, 4, 2, N)
    assert same(attend("streaming", q, k, v, replace(CAUSAL, **changes)), full(q, k, v, True))  # type: ignore[arg-type]


def test_streaming_positions_in_a_cache_as_long_as_the_sequence_are_the_sequence_s() -> None:
    q, k, v = inputs(1, 2, 2, N)
    made = operator("streaming_cache").arrange(q, k, v, CAUSAL)
    whole = replace(CAUSAL, window=N)
    assert same(attend("streaming_cache", q, k, v, whole), full(*made.full(), True))


def test_gqa_with_all_heads_is_flash_and_with_one_is_mqa() -> None:
    q, k, v = inputs(2, 4, 1, N)
    assert same(attend("gqa", q, k, v, CAUSAL), attend("mqa", q, k, v, CAUSAL))
    assert same(attend("mqa", q, k, v, CAUSAL), attend("flash", q, k, v, CAUSAL))
    assert same(attend("decode_gqa", q, k, v, CAUSAL), attend("decode_mqa", q, k, v, CAUSAL))


def test_decoding_is_the_last_row_of_causal_attention() -> None:
    q, k, v = inputs(2, 4, 4, 600)
    for engine in ("plain", "split"):
        assert same(attend("decode", q, k, v, CAUSAL, engine), full(q, k, v, True)[:, :, -1:])


@pytest.mark.parametrize("causal", [False, True])
def test_latent_attention_absorbed_is_not_absorbed(causal: bool) -> None:
    q, k, v = inputs(2, 4, 4, N)
    spec = replace(SPEC, causal=causal)
    assert same(attend("mla", q, k, v, spec, "absorbed"), attend("mla", q, k, v, spec))
    made = operator("mla").arrange(q, k, v, spec)
    assert same(attend("mla", q, k, v, spec), full(*made.full(), causal))
    assert same(attend("decode_mla", q, k, v, CAUSAL), attend("mla", q, k, v, CAUSAL)[:, :, -1:])


@pytest.mark.parametrize("causal", [False, True])
def test_one_bucket_and_one_chunk_of_reformer_is_full_attention_with_shared_qk(causal: bool) -> None:
    q, k, v = inputs(2, 4, 4, N)
    spec = replace(SPEC, causal=causal, buckets=1, block=64)
    keys = q / q.norm(dim=-1, keepdim=True)
    scores = q @ keys.transpose(-2, -1) / 4
    i = torch.arange(N)
    hidden = i[:, None] == i if not causal else i[:, None] <= i
    hidden = hidden & ~((i[:, None] == 0) & (i == 0)) if causal else hidden
    expected = torch.softmax(scores.masked_fill(hidden, -torch.inf), -1) @ v
    assert same(attend("reformer", q, k, v, spec), expected)


def test_slim_is_multi_head_attention_with_its_values_written_out() -> None:
    q, k, v = inputs(2, 4, 4, N)
    made = operator("slim").arrange(q, k, v, CAUSAL)
    assert same(run(operator("slim").ENGINES["plain"], made, CAUSAL), full(*made.full(), False), 1e-9)
    assert any("condition number" in note for note in made.notes)


@pytest.mark.parametrize("engine", ["plain", "pages"])
def test_paged_is_contiguous_whatever_the_order_of_its_pages(engine: str) -> None:
    q, k, v = inputs(3, 4, 2, 130)
    found = [attend("paged", q, k, v, replace(CAUSAL, seed=seed), engine) for seed in (0, 1)]
    tables = [paged.arrange(q, k, v, replace(CAUSAL, seed=seed)).parameters["table"] for seed in (0, 1)]
    assert not torch.equal(*tables)
    for out in found:
        for b, length in enumerate((130, 122, 114)):
            cut = slice(b, b + 1)
            assert same(out[cut], full(q[cut, :, -1:], k[cut, :, :length], v[cut, :, :length], False))


@pytest.mark.parametrize("causal", [False, True])
def test_xattention_at_tau_1_is_full_attention(causal: bool) -> None:
    q, k, v = inputs(2, 4, 2, N)
    assert same(attend("xattention", q, k, v, replace(SPEC, causal=causal, tau=1.0)), full(q, k, v, causal))


def test_xattention_keeps_fewer_blocks_at_a_smaller_tau() -> None:
    module, shape = operator("xattention"), Shape(1, 2, 2, 512, 64, 512)
    q, k, _ = planted(shape, 0)
    kept = [float(module.choose(q, k, Spec(causal=True, tau=tau)).float().mean()) for tau in (0.5, 0.9, 1.0)]
    assert kept[0] < kept[1] < kept[2]


def test_block_sparse_with_every_block_is_full_attention() -> None:
    q, k, v = inputs(2, 4, 2, N)
    assert same(attend("block_sparse", q, k, v, replace(CAUSAL, density=1.0)), full(q, k, v, True))


def test_causal_linear_attention_is_its_recurrence() -> None:
    q, k, v = inputs(1, 2, 2, 150)
    state, total, rows = torch.zeros(1, 2, 16, 16).double(), torch.zeros(1, 2, 16).double(), []
    for t in range(150):
        query, key = features(q[:, :, t]), features(k[:, :, t])
        state, total = state + key[..., :, None] * v[:, :, t, None, :], total + key
        rows.append((query[..., None, :] @ state)[..., 0, :] / (query * total).sum(-1, keepdim=True))
    assert same(attend("linear", q, k, v, CAUSAL), torch.stack(rows, 2))


def test_linear_attention_of_the_last_token_sees_what_the_one_without_a_mask_sees() -> None:
    q, k, v = inputs(1, 2, 2, N)
    assert same(attend("linear", q, k, v, CAUSAL)[:, :, -1], attend("linear", q, k, v, SPEC)[:, :, -1])


def test_log_linear_with_equal_weights_is_linear() -> None:
    q, k, v = inputs(2, 4, 2, 300)
    made = log_linear.arrange(q, k, v, CAUSAL)
    equal = torch.zeros_like(made.parameters["of_levels"])
    assert same(log_linear.attend(q, k, v, CAUSAL, of_levels=equal), attend("linear", q, k, v, CAUSAL))


def test_the_levels_of_the_tree_are_a_fenwick_tree_s() -> None:
    place = torch.arange(64)
    level = log_linear.level_of(place[:, None], place)
    for t in (1, 6, 7, 32, 63):
        buckets, rest = {0: {t}}, t
        while rest:
            size = rest & -rest
            buckets[size.bit_length()] = set(range(rest - size, rest))
            rest -= size
        assert {s: int(level[t, s]) for s in range(t + 1)} == {s: n for n, tokens in buckets.items() for s in tokens}


def test_nsa_that_selects_every_block_has_full_attention_as_that_branch() -> None:
    q, k, v = inputs(1, 4, 2, N)
    spec = replace(CAUSAL, top=99, window=N)
    module = operator("nsa")
    made = module.arrange(q, k, v, spec)
    gates = made.parameters["gates"]
    compressed = torch.zeros_like(gates)
    pools = {name: made.parameters[name] for name in ("pool_keys", "pool_values")}
    with_all = module.attend(q, k, v, spec, **pools, gates=compressed)
    without = module.attend(q, k, v, replace(spec, window=1), **pools, gates=compressed)
    assert same(with_all - without, 0.5 * (full(q, k, v, True) - v.repeat_interleave(2, 1)))


def test_mta_with_identity_kernels_is_normed_and_gated_causal_attention() -> None:
    q, k, v = inputs(2, 4, 2, N)
    module = operator("mta")
    made = module.arrange(q, k, v, CAUSAL).parameters
    kernel, mixing = torch.zeros_like(made["kernel"]), torch.eye(2).double().expand(2, 2, 2)
    kernel[:, :, -1, module.KEYS // 2] = 1
    rest = {"gain": torch.ones_like(made["gain"]), "gate": torch.zeros_like(made["gate"])}
    out = full(q, k, v, True)
    expected = 0.5 * out / (out.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    assert same(module.attend(q, k, v, CAUSAL, kernel=kernel, mixing=mixing, **rest), expected)


def test_simplicial_with_second_keys_and_values_of_one_token_is_a_sliding_window() -> None:
    q, k, v = inputs(1, 4, 2, N)
    ones = torch.ones_like(k)
    spec = replace(CAUSAL, second_window=1)
    out = operator("simplicial2").attend(q, k, v, spec, second_keys=ones, second_values=ones)
    assert same(out, attend("sliding", q, k, v, spec))


@pytest.mark.parametrize("causal", [False, True])
def test_shaw_without_vectors_and_xl_without_distance_are_softmax_attention(causal: bool) -> None:
    q, k, v = inputs(1, 4, 2, N)
    spec, zeros = replace(SPEC, causal=causal), torch.zeros(11, 16).double()
    assert same(operator("shaw").attend(q, k, v, spec, of_keys=zeros, of_values=zeros), full(q, k, v, causal))
    parameters = {"distance": torch.zeros(4, N, 16).double()}
    parameters |= dict.fromkeys(("content_bias", "place_bias"), torch.zeros(4, 16).double())
    assert same(operator("transformer_xl").attend(q, k, v, CAUSAL, **parameters), full(q, k, v, True))


def test_linformer_with_the_identity_is_softmax_attention() -> None:
    q, k, v = inputs(1, 4, 2, N)
    identity = torch.eye(N).double()
    assert same(operator("linformer").attend(q, k, v, SPEC, identity, identity), full(q, k, v, False))


def test_score_changes_that_change_nothing_are_softmax_attention() -> None:
    q, k, v = inputs(1, 4, 2, N)
    assert same(operator("alibi").attend(q, k, v, CAUSAL, torch.zeros(4).double()), full(q, k, v, True))
    assert same(operator("pasta").attend(q, k, v, CAUSAL, torch.zeros(4, N).double()), full(q, k, v, True))


def test_lessismore_with_the_whole_budget_is_full_attention() -> None:
    q, k, v = inputs(2, 4, 2, N)
    for engine in ("plain", "reuse"):
        out = attend("lessismore", q, k, v, replace(CAUSAL, budget=1.0), engine)
        assert same(out, full(q, k, v, True)[:, :, -1:])


def test_the_compressed_cache_is_the_recurrence_token_by_token() -> None:
    _, k, _ = inputs(1, 2, 2, N)
    appended, importance = dmc_operator.decisions(k, CAUSAL)
    found = dmc_operator.compress(k, appended, importance)
    for head in range(2):
        slots: list[Tensor] = []
        weight = 0.0
        for t in range(N):
            w = float(importance[0, head, t])
            if appended[0, head, t]:
                slots.append(k[0, head, t])
                weight = w
            else:
                slots[-1] = (weight * slots[-1] + w * k[0, head, t]) / (weight + w)
                weight += w
        assert same(found[0, head, : len(slots)], torch.stack(slots))
        assert 1 < len(slots) < N


def test_dmc_that_merges_nothing_is_full_attention() -> None:
    q, k, v = inputs(2, 4, 2, N)
    assert same(attend("dmc", q, k, v, replace(CAUSAL, compression=1.0)), full(q, k, v, True)[:, :, -1:])


def test_a_dilated_window_is_a_window_on_every_residue_class() -> None:
    q, k, v = inputs(1, 4, 2, N)
    spec = replace(SPEC, dilation=3, global_tokens=0, window=4)
    module = operator("longformer")
    assert same(attend("longformer", q, k, v, spec), module.reference(q, k, v, spec))
    place = torch.arange(N)
    seen = module.seen(spec)(place[:, None], place)
    assert seen[20].nonzero().flatten().tolist() == list(range(8, 33, 3))


def test_swin_of_one_window_is_full_attention_with_its_bias() -> None:
    q, k, v = inputs(1, 4, 4, 16)
    bias = torch.zeros(4, 16, 16).double()
    assert same(operator("swin").attend(q, k, v, SPEC, bias), full(q, k, v, False))


def test_planted_inputs_have_sinks_and_a_band_that_gaussian_ones_lack() -> None:
    shape = Shape(1, 2, 2, 512, 64, 512)
    shares = []
    for make in (gaussian, planted):
        q, k, _ = make(shape, 0)
        weights = torch.softmax(
            (q @ k.transpose(-2, -1) / 8).masked_fill(~torch.ones(512, 512).tril().bool(), -1e9), -1
        )
        late = weights[:, :, 256:]
        near = (torch.arange(256, 512)[:, None] - torch.arange(512)) < 64
        shares.append((float(late[..., :4].sum(-1).mean()), float((late * near).sum(-1).mean())))
    (no_sinks, _), (sinks, band) = shares
    assert no_sinks < 0.05 < 0.2 < sinks
    assert band > 0.15
    again = planted(shape, 0)
    assert all(torch.equal(a, b) for a, b in zip(again, planted(shape, 0), strict=True))


def test_capturing_takes_the_call_that_was_asked_for() -> None:
    q, k, v = inputs(1, 2, 2, 8)
    with capturing(2) as taken:
        for factor in (1, 2, 3):
            torch.nn.functional.scaled_dot_product_attention(factor * q, k, v)
    assert len(taken) == 1 and torch.equal(taken[0][0], 2 * q)
