"""`repshift analyze`: a planted model whose answers are known, and each measure against its definition."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import case, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from typer.testing import CliRunner

import repshift_cli
from repshift_cli.attention import flash, sliding, vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.cli import app
from repshift_cli.commands.analyze import inspection_schema
from repshift_cli.inspection import Look, Settings, cache, heads, reach, repair, score, sinks
from repshift_cli.inspection.base import arrays, caches, effects, left_out, packing, ranks, rows
from repshift_cli.inspection.base.blocks import own_places
from repshift_cli.inspection.base.left_out import halves, importance
from repshift_cli.inspection.base.shifts import shifts
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.models.base.decoder import next_logits
from repshift_cli.models.discovery.blocks import find_sites
from repshift_cli.records import Subject, UsageError, call, store
from repshift_cli.records.inspection import Answer
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.seen import Seen
from repshift_cli.renderers import document_of, table

WIDTH, HEADS, TOKENS = 12, 3, 12
SINK, IMPORTANT = 3, 8
"""Places among the tokens, behind a class token."""
SINKING, SLEEPING, READING = 0, 1, 2
"""The heads: one looks at the sink, one puts out nothing, one moves what the important token holds."""


class Planted(tiny.PreNorm):
    """A block without norms, whose weights say which head looks where: features 0 and 1 mark the sink and the important
    token, 2 is what that one holds, 3 where it is put."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS)
        self.first = self.second = nn.Identity()  # type: ignore[assignment]
        self.second = nn.Identity()  # type: ignore[assignment]
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            _, key, value = self.mix.qkv.weight.view(3, HEADS, 4, WIDTH)
            self.mix.qkv.bias.view(3, HEADS, 4)[0, [SINKING, READING], 0] = 20
            key[SINKING, 0, 0] = key[READING, 0, 1] = 1
            value[SINKING, 0, 4] = value[READING, 0, 2] = 1
            self.mix.out.weight.view(WIDTH, HEADS, 4)[3, READING, 0] = 1
            self.mix.out.weight.view(WIDTH, HEADS, 4)[5, SINKING, 0] = 0.01
            self.feed[0].weight.copy_(torch.randn(2 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)))
            self.feed[2].weight[6:].fill_(0.001)


ALL = Settings(left_out=99)


def planted(inputs: int = 2) -> Look:
    module: Any = tiny.PlainTransformer(Planted, width=WIDTH, classes=2)
    module.norm = nn.Identity()
    with torch.no_grad():
        module.cls_token.zero_()
        module.head.weight.zero_()
        module.head.weight[0, 3] = 1
        module.head.bias[1] = 1
    tokens = 0.1 * tiny.pixels(inputs, TOKENS, WIDTH)
    tokens[:, :, :4] = 0
    tokens[:, SINK, 0] = tokens[:, IMPORTANT, 1] = tokens[:, IMPORTANT, 2] = 1
    tokens[:, SINK, 4] = 1
    return look_of(tiny.subject(module.double().eval(), (tokens,)), Settings(left_out=TOKENS))


def look_of(subject: Subject, settings: Settings = ALL, attention: Any = vanilla) -> Look:
    @contextmanager
    def active() -> Iterator[None]:
        with torch.inference_mode(), attending(attention):
            yield

    def row(value: Any, n: int) -> Any:
        return value[n : n + 1] if isinstance(value, Tensor) else value

    given = subject.inputs
    size = len(next(iter(given.values())) if isinstance(given, dict) else given[0])
    alone = [
        {k: row(v, n) for k, v in given.items()} if isinstance(given, dict) else tuple(row(v, n) for v in given)
        for n in range(size)
    ]
    return Look(case(batch=1), subject, active, tuple(alone), settings)


# --- attention by rows ------------------------------------------------------------------------------------------------


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


CALLS: dict[str, Callable[[], AttentionCall]] = {
    "plain": lambda: AttentionCall(drawn(2, 4, 9, 8), drawn(2, 4, 9, 8) + 1, drawn(2, 4, 9, 8)),
    "grouped": lambda: AttentionCall(drawn(2, 4, 9, 8), drawn(2, 2, 9, 8) + 1, drawn(2, 2, 9, 8), enable_gqa=True),
    "causal": lambda: AttentionCall(drawn(1, 4, 9, 8), drawn(1, 4, 9, 8), drawn(1, 4, 9, 8), is_causal=True, scale=0.7),
    "masked": lambda: AttentionCall(
        drawn(2, 4, 9, 8), drawn(2, 4, 9, 8), drawn(2, 4, 9, 8), (torch.arange(9) < 7).view(1, 1, 1, 9)
    ),
    "biased": lambda: AttentionCall(
        drawn(2, 4, 9, 8), drawn(2, 4, 9, 8), drawn(2, 4, 9, 8), drawn(4, 9, 9).masked_fill(drawn(4, 9, 9) > 1, -1e300)
    ),
}


@pytest.mark.parametrize("kind", CALLS)
def test_weights_by_rows_are_those_of_the_whole_map(kind: str) -> None:
    call = CALLS[kind]()
    whole = torch.zeros(*call.query.shape[:3], 9, dtype=torch.float64)
    for head, which, share, _ in rows.weights(call, most=9 * 4):
        whole[:, head, which] = share
    asked: dict[str, Any] = {"is_causal": call.is_causal, "scale": call.scale, "enable_gqa": call.enable_gqa}
    eye = torch.eye(9, dtype=torch.float64).expand(*call.key.shape[:2], 9, 9)
    expected = F.scaled_dot_product_attention(call.query, call.key, eye, call.attn_mask, **asked)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(rows.paid(call, 4), expected[:, :, 4].mean(1), rtol=0, atol=1e-12)


def test_attention_received_is_a_mean_over_the_queries_that_see_the_key() -> None:
    call = CALLS["causal"]()
    whole = F.scaled_dot_product_attention(
        call.query, call.key, torch.eye(9, dtype=torch.float64).expand(1, 4, 9, 9), is_causal=True, scale=0.7
    )
    asking = torch.arange(9) < 8
    expected = whole[:, :, :8].sum(2) / torch.tensor([8, 7, 6, 5, 4, 3, 2, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(rows.received(call, asking, most=20), expected, rtol=0, atol=1e-12)


def test_a_mask_that_hides_what_comes_makes_attention_causal_as_the_flag_does() -> None:
    plain, flagged = CALLS["plain"](), CALLS["causal"]()
    lower = torch.ones(9, 9, dtype=torch.bool).tril()
    assert rows.causal(flagged) and rows.causal(plain._replace(attn_mask=lower))
    assert not rows.causal(plain) and not rows.causal(CALLS["masked"]())


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that any operator gives."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(one, Tensor):
                self.elements = max(self.elements, one.numel())
        return out


def test_no_more_weights_exist_at_once_than_the_bound_says() -> None:
    heads, tokens, most = 6, 256, 4096
    call = AttentionCall(*(drawn(1, heads, tokens, 2) for _ in range(3)))
    with Largest() as largest:
        rows.received(call, torch.ones(tokens, dtype=torch.bool), most)
    assert largest.elements <= most < tokens * tokens


def test_no_map_of_all_heads_is_kept_while_a_model_is_looked_at() -> None:
    """Under flash nothing of a question is as large as the heads' maps, nor larger than the bound of `rows`."""
    tokens = 800
    look = planted(1)
    subject = replace(look.subject, tokens=tokens)
    look = look_of(replace(subject, inputs=(0.1 * tiny.pixels(1, tokens, WIDTH),)), attention=flash)
    with Largest() as largest:
        assert sinks.answer(look).status == "ok"
        with look.active():
            score._seen(look, look.inputs[0])
    assert tokens**2 < largest.elements <= rows.MOST < HEADS * tokens**2


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_rank_correlation_is_spearmans() -> None:
    one, other = torch.tensor([3.0, 1, 2, 2, 5, 9]), torch.tensor([1.0, 1, 2, 7, 5, 6])
    pairs = torch.tensor([[4, 1, 2.5, 2.5, 5, 6], [1.5, 1.5, 3, 6, 4, 5]])  # ranks, by hand
    assert ranks.rank_correlation(one, other) == pytest.approx(float(torch.corrcoef(pairs)[0, 1]))
    assert ranks.rank_correlation(one, torch.ones(6)) is None
    assert ranks.rank_correlation(one[:3], other[:3]) is None


def test_a_sign_is_told_only_where_it_is_clear_of_chance() -> None:
    assert ranks.told_sign([0.5, 0.4], 30) == 1
    assert ranks.told_sign([-0.5, -0.4], 30) == -1
    assert ranks.told_sign([0.5], 10) == 0, "two standard errors of 9 are 0.67"
    assert ranks.told_sign([0.9, -0.4], 1000) == 0, "the inputs disagree"
    assert ranks.told_sign([None], 30) == 0


def test_the_lower_half_is_weighed_against_a_random_one() -> None:
    weight = torch.tensor([1.0, 1, 3, 3])
    assert ranks.lower_half_weight(torch.arange(4.0), weight) == 0.5
    assert ranks.lower_half_weight(-torch.arange(4.0), weight) == 1.5
    assert ranks.lower_half_weight(torch.arange(4.0), torch.zeros(4)) is None
    assert ranks.top_share(torch.tensor([6.0, 1, 1, 1, 1]), 0.2) == pytest.approx(0.6)


# --- leave one out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "plain_torch", "videomae"])
def test_importance_is_that_of_the_token_really_taken_away(family: str) -> None:
    plain = tiny.FAMILIES[family]()
    look = look_of(tiny.subject(plain.module, plain.inputs))
    what = effects.KL if family == "vit" else effects.DISTANCE
    untouched = plain.forward()
    for layer, place in ((1, plain.prefix), (2, plain.prefix + 3)):

        def without(here: int, seen: dict[str, Tensor], layer: int = layer, place: int = place) -> Tensor:
            x = seen["resid_post"]
            return torch.cat((x[:, :place], x[:, place + 1 :]), 1) if here == layer else x

        expected = effects.change(untouched, plain.forward(without), what)
        places = own_places(look.subject, look.inputs[0])
        with look.active():
            for sample, inputs in enumerate(look.inputs):
                reference = effects.read_out(look.subject, look.run(inputs))
                found = importance(look, inputs, layer, places, reference, what)
                assert float(found[places.tolist().index(place)]) == pytest.approx(float(expected[sample]), rel=1e-6)


@pytest.mark.parametrize("family", ["vit", "plain_torch"])
def test_halves_at_once_are_those_really_taken_away(family: str) -> None:
    plain = tiny.FAMILIES[family]()
    look = look_of(tiny.subject(plain.module, plain.inputs))
    what = effects.KL if family == "vit" else effects.DISTANCE
    score_of = torch.randperm(plain.tokens, generator=torch.Generator().manual_seed(1)).double()
    random = torch.rand(4, plain.tokens, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    untouched, costs = plain.forward(), []
    for one in (score_of, -score_of, *random):
        stay = one.argsort(descending=True)[: plain.tokens - plain.tokens // 2].sort().values + plain.prefix
        kept_of = torch.cat((torch.arange(plain.prefix), stay))
        output = plain.forward(lambda n, seen, rows=kept_of: seen["resid_post"][:, rows if n == 2 else slice(None)])
        costs.append(float(effects.change(untouched, output, what)[0].detach()))
    usual = sum(costs[2:]) / 4
    with look.active():
        reference = effects.read_out(look.subject, look.run(look.inputs[0]))
        draw = torch.Generator().manual_seed(7)
        found = halves(look, look.inputs[0], 2, score_of, draw, reference, what)
    assert found == pytest.approx((costs[0] / usual, costs[1] / usual), rel=1e-5)


def test_the_important_token_is_the_planted_one_and_the_rest_is_next_to_nothing() -> None:
    found = score.answer(planted())
    assert found.settings["importance"] == effects.DISTANCE
    top = found.quantity("top_tenth").values
    assert top[0] is not None and top[0] > 0.99
    assert top[-1] is None, "after the last block only the class token is read: nothing else weighs"
    assert found.quantity("importance").values[-1] == 0


def test_a_score_that_knows_the_importance_correlates_with_it_and_its_opposite_inversely() -> None:
    look = planted()
    inputs = look.inputs[0]
    with look.active():
        seen, output = score._seen(look, inputs)
        score._leave_out(look, inputs, 0, seen, effects.read_out(look.subject, output), effects.DISTANCE)
    block = seen[0]
    assert block.importance is not None and block.some is not None
    assert int(block.importance.argmax()) == IMPORTANT
    block.scores["known"], block.scores["opposite"] = block.importance, -block.importance
    assert score._correlation(block, "known", score.IMPORTANCE) == pytest.approx(1)
    assert score._correlation(block, "opposite", score.IMPORTANCE) == pytest.approx(-1)


def test_with_even_norms_the_shift_is_that_of_tokens_all_as_long() -> None:
    """A block with a norm before its branch, really run on the tokens made as long: what it adds stays the same."""
    plain = tiny.plain_torch()
    look, kept = look_of(tiny.subject(plain.module, plain.inputs)), {}

    def keep(layer: int, seen: dict[str, Tensor]) -> Tensor:
        kept[layer] = Seen(seen)
        return seen["resid_post"]

    plain.forward(keep)
    state = kept[2]["resid_mid"]
    length = state.norm(dim=-1, keepdim=True)
    even = state / length * length.median(1, keepdim=True).values
    expected = (plain.blocks[1][1](even) - even).norm(dim=-1)
    found = dict(shifts(look, 2, kept[2]))
    names = list(found)
    assert names[:2] == ["mlp l2 paper", "mlp l2 paper, even norms"]
    torch.testing.assert_close(found[names[1]], expected, rtol=1e-3, atol=0)
    assert not torch.allclose(found[names[0]], expected, rtol=0.05)


def test_it_is_read_out_where_even_norms_turn_a_sign() -> None:
    depth, scores = arrays.blocks(4), arrays.axis("score", ("l2", "l2, even norms", "norm"))
    forms = arrays.quantity(
        "", "", "", [depth, scores], [[0.5, -0.1, 0], [0.5, 0.4, 0], [0.1, -0.1, 0], [-0.5, 0.2, 0]]
    )
    assert score._turned(forms, (1, 1, 0, -1)) == [1, 4]
    assert not score._turned(replace(forms, axes=(depth, arrays.axis("score", ("block", "norm", "x")))), (1, 1, 1, 1))


# --- the command ------------------------------------------------------------------------------------------------------

SMALL = ["analyze", "--model", "vit_t", "--image-size", "32", "--inputs", "1", "--left-out", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One stored inspection, for all tests that read one."""
    place = tmp_path_factory.mktemp("inspected") / "found.json"
    done = CliRunner().invoke(app, [*SMALL, "--blocks", "1,4", "--out", str(place)])
    assert done.exit_code == 0, done.output
    assert "What the score sees" in done.output
    return place


def test_the_file_is_what_its_schema_says_and_is_read_back(inspected: Path) -> None:
    jsonschema.validate(json.loads(inspected.read_text()), inspection_schema())
    found: Any = store.load_any(inspected)
    assert found.case.model == "vit_t" and found.case.attention == "flash"
    importance_of = dict(found.answer("score").quantity("importance").items())
    assert importance_of[("1",)] is not None and importance_of[("2",)] is None
    with pytest.raises(UsageError, match="is an inspection, no run file"):
        store.load(inspected)


def test_show_renders_it_again_and_csv_holds_every_value(inspected: Path) -> None:
    done = CliRunner().invoke(app, ["show", str(inspected), "--csv", "-"])
    lines = list(csv.DictReader(io.StringIO(done.output)))
    found: Any = store.load_any(inspected)
    assert len(lines) == sum(len(q.values) for a in found.answers for q in a.quantities)
    assert {"block", "score", "value"} <= lines[0].keys()
    assert document_of(found).kind == "inspection"


def test_what_could_not_be_asked_is_shown_with_its_reason(inspected: Path) -> None:
    found: Any = store.load_any(inspected)
    refused = Answer("score", "What the score sees", "skipped", "it is a grid")
    with io.StringIO() as out:
        table.render(document_of(replace(found, answers=(refused,))), out)
        assert "skipped: it is a grid" in out.getvalue()


def test_the_published_schema_is_the_one_that_holds() -> None:
    """After a change: repshift analyze --schema > repshift_cli/records/inspection.schema.json"""
    published = Path(repshift_cli.__file__).parent / "records" / "inspection.schema.json"
    assert json.loads(published.read_text()) == inspection_schema()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 99}, "has schema version 99"),
        ({"answers": 3}, "is a damaged inspection: inspection.answers"),
        ({"values": []}, "0 values for"),
    ],
)
def test_a_damaged_file_is_refused(inspected: Path, tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    plain = json.loads(inspected.read_text())
    target = plain["answers"][0]["quantities"][0] if "values" in change else plain
    target |= change
    (tmp_path / "damaged.json").write_text(json.dumps(plain))
    with pytest.raises(UsageError, match=complaint):
        store.load_any(tmp_path / "damaged.json")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--question", "scor"], "unknown question 'scor': did you mean score"),
        (["--variant", "flash+repshift"], "without a method"),
        (["--model", "vit_t,vit_s"], "give --model one value"),
        (["--blocks", "a"], "write 1,4,7 or 1:12:3"),
        (["--blocks", "4,13"], "--blocks 13: the model has 12 blocks"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(arguments: list[str], complaint: str) -> None:
    done = CliRunner().invoke(app, [*SMALL, *arguments])
    assert isinstance(done.exception, UsageError) and complaint in str(done.exception)


def test_a_grid_has_no_tokens_to_leave_out() -> None:
    look = planted(1)
    assert "grid" in str(score.unanswerable(replace(look, subject=replace(look.subject, grid=True))))


# --- sinks and heads --------------------------------------------------------------------------------------------------


def test_the_planted_sink_is_found_where_it_is() -> None:
    found = sinks.answer(planted())
    assert found.quantity("place").values == (1 + SINK,) * tiny.DEPTH
    most = dict(found.quantity("attention_most").items())
    assert all(value is not None for value in most.values())
    for block in ("1", "2", "3"):
        assert most[block, str(1 + SINKING)] > 0.99 and most[block, str(1 + SLEEPING)] < 0.1  # type: ignore[operator]
    rate = dict(found.quantity("rate").items())
    assert rate["1", "first token"] == 0
    assert rate["1", "most attracting"] == pytest.approx(1 / HEADS), "the reading head leans on another token"
    assert rate["1", "any token"] == pytest.approx(2 / HEADS)
    assert set(found.quantity("may_go").values) == {1.0}


def test_sink_rates_move_with_the_length() -> None:
    look = planted()
    longer = replace(look, subject=replace(look.subject, tokens=30), inputs=(tiny.pixels(1, 30, WIDTH).sign() * 0,))
    longer = replace(longer, inputs=tuple((x,) for x in longer.inputs))
    found = sinks.answer(replace(look, others=(lambda: longer,)))
    rates = dict(found.quantity("rate_by_length").items())
    assert rates["13", "most attracting"] == pytest.approx(1 / HEADS)
    assert rates["31", "any token"] == 0, "where nothing is marked every key gets the same"


def test_the_last_tokens_of_a_causal_sequence_are_no_sinks() -> None:
    """Each of the last tokens is seen by few queries, and looks at itself: a mean over one query is no sink."""
    eye = 10 * torch.eye(12, dtype=torch.float64).expand(1, 1, 12, 12)
    call = AttentionCall(eye, eye, eye, is_causal=True)
    asking = torch.ones(12, dtype=torch.bool)
    assert float(rows.received(call, asking)[0, 0, -1]) > 0.9
    found = rows.received(call, asking, least=8)[0, 0]
    assert (found[:5] > 0).all() and not found[5:].any()
    assert rows.received(call, asking, least=99)[0, 0].nonzero().tolist() == [[0]], "as many as there are"


def test_of_packed_documents_each_start_draws_where_no_other_is_seen(decoder: Look) -> None:
    inputs = tuple({**decoder.inputs[0], "input_ids": ids} for ids in torch.randint(50, (3, 1, 20)))
    look = replace(decoder, inputs=inputs, settings=replace(ALL, packed=2))
    apart, packed = (packing.Packing(kind, False) for kind in (packing.APART, packing.PACKED))
    pieces = list(packing.sequences(look, packed, 2))
    assert [len(p) for p in pieces] == [2, 2, 2] and pieces[2][1].equal(inputs[0]["input_ids"][:, :10])
    with look.active():
        alone = packing.attention_of(look, [pieces[0][1]], packed, 1)
        masked, seen = (packing.attention_of(look, pieces[0], kind, 1) for kind in (apart, packed))
    for block, one in enumerate(alone):
        torch.testing.assert_close(masked[block][:, 10:], one, rtol=0, atol=1e-9)
        assert (seen[block][:, 10] < one[:, 0]).all(), "it shares with the first document"
    found = dict(sinks.answer(look).quantity("rate_by_packing").items())
    assert found["whole", sinks.OF_PACKED[1]] is None and found["packed", sinks.OF_PACKED[1]] is not None
    started = next(packing.sequences(look, packing.Packing(packing.PACKED, True), 2))
    assert [int(piece[0, 0]) for piece in started] == [packing.start_of(look)] * 2
    assert "add --inputs 4" in str(sinks.unanswerable(replace(look, settings=replace(ALL, packed=4))))
    assert "leave out --packed" in str(sinks.unanswerable(replace(planted(1), settings=replace(ALL, packed=2))))


def test_the_planted_dormant_head_is_found_and_not_missed() -> None:
    look = planted()
    found = heads.answer(look)
    assert found.quantity("dormant").values == pytest.approx((1 / HEADS,) * tiny.DEPTH)
    norm = dict(found.quantity("norm").items())
    assert norm["1", str(1 + SLEEPING)] == 0
    effect = dict(found.quantity("effect").items())
    assert all(effect[str(n), "dormant heads"] == 0 for n in (1, 2, 3))
    assert effect["1", "other heads"] > 0.01  # type: ignore[operator]
    assert found.quantity("shift_without").values == pytest.approx((1.0,) * tiny.DEPTH)


def test_heads_put_to_zero_are_those_of_the_projection_without_their_columns() -> None:
    plain = tiny.plain_torch()
    look = look_of(tiny.subject(plain.module, plain.inputs))
    off = torch.tensor([False, True, False, True])
    with look.active(), heads._without(look, {2: off}):
        found = look.run(plain.inputs)
    weight = plain.module.blocks[1].mix.out.weight
    with torch.no_grad():
        weight.view(tiny.WIDTH, 4, -1)[:, off] = 0
    torch.testing.assert_close(found, plain.forward(), rtol=0, atol=1e-12)


def test_dormant_is_by_the_mean_of_the_block() -> None:
    assert heads.dormant(torch.tensor([1.0, 1.0, 0.3]), 0.5).tolist() == [False, False, True]


# --- self-repair ------------------------------------------------------------------------------------------------------


def test_direct_and_total_effects_are_those_of_the_model_written_out() -> None:
    plain = tiny.plain_torch()
    look = look_of(tiny.subject(plain.module, plain.inputs))
    with look.active():
        found = repair._effects(look, look.inputs[0], 0)
    kept: dict[int, dict[str, Tensor]] = {}

    def keep(layer: int, seen: dict[str, Tensor]) -> Tensor:
        kept[layer] = seen
        return seen["resid_post"]

    def lost(output: Tensor) -> float:
        return 1 - float((output[0].detach() * reference[0]).sum() / (reference[0] ** 2).sum())

    reference = plain.forward(keep).detach()
    ends = kept[tiny.DEPTH]["resid_post"]
    for layer in (1, tiny.DEPTH):
        gone = kept[layer]["attn_out"] + kept[layer]["mlp_out"]
        total = plain.forward(lambda n, seen, layer=layer: seen["resid_pre" if n == layer else "resid_post"])
        assert found[layer - 1][2] == pytest.approx((lost(total), lost(plain.finish(ends - gone))))
        assert found[layer - 1][0][1] == pytest.approx(lost(plain.finish(ends - kept[layer]["attn_out"])))
    plain.module.blocks[0].mix.out.weight.data.zero_()
    plain.module.blocks[0].mix.out.bias.data.zero_()
    assert found[0][0][0] == pytest.approx(lost(plain.forward()))


def linear(depth: int) -> Any:
    """Blocks without norms whose branches are linear and begin with zeros, read out at feature 3 of the class token."""
    module: Any = tiny.PlainTransformer(Planted, depth=depth, width=WIDTH, classes=2)
    module.norm = nn.Identity()
    for p in module.parameters():
        p.data.zero_()
    for block in module.blocks:
        block.feed = nn.Linear(WIDTH, WIDTH)
        for p in block.feed.parameters():
            p.data.zero_()
    module.head.weight.data[0, 3] = 1
    return module.double().eval()


def test_half_of_what_a_block_writes_is_repaired_where_the_next_takes_half_of_it_away() -> None:
    module = linear(2)
    module.blocks[0].feed.bias.data[3] = 1
    module.blocks[1].feed.weight.data[3, 3] = -0.5
    found = repair.answer(look_of(tiny.subject(module, (tiny.pixels(2, TOKENS, WIDTH),))))
    made_up = dict(found.quantity("repaired").items())
    assert made_up["1", "mlp"] == pytest.approx(0.5)
    assert made_up["1", "attention"] is None, "it has written nothing"
    assert dict(found.quantity("direct").items())["1", "mlp"] == pytest.approx(2)
    assert any(line.endswith("50% is made up for") for line in found.reading)


def test_a_block_that_norms_its_sums_has_no_direct_effect() -> None:
    plain = tiny.post_norm()
    found = repair.answer(look_of(tiny.subject(plain.module, plain.inputs)))
    assert set(found.quantity("direct").values) == {None} and found.quantity("direct").missing
    assert None not in found.quantity("total").values


# --- reach ------------------------------------------------------------------------------------------------------------


def test_reach_of_a_linear_model_is_its_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """x^ = (I + a A) x with A the mean over the window, so that the influence after l blocks is (I + a A)^l."""
    window, depth, tokens, share = 2, 3, 8, 0.5
    monkeypatch.setattr(sliding, "WINDOW", window)
    module = linear(depth)
    for block in module.blocks:
        block.mix.qkv.weight.data[2 * WIDTH :] = share * torch.eye(WIDTH)
        block.mix.out.weight.data.copy_(torch.eye(WIDTH))
    look = look_of(tiny.subject(module, (tiny.pixels(1, tokens, WIDTH),)), attention=sliding)
    found = reach.answer(look)
    at = torch.arange(tokens + 1)
    band = ((at[:, None] - at).abs() <= window).double()
    step = torch.eye(tokens + 1).double() + share * band / band.sum(1, keepdim=True)
    influence = dict(found.quantity("influence").items())
    for layer in range(1, depth + 1):
        power = torch.linalg.matrix_power(step, layer)[1:, 1:]
        for distance in range(tokens):
            expected = [float(power[i, j]) for i in range(tokens) for j in range(tokens) if abs(i - j) == distance]
            assert influence[str(layer), str(distance)] == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    assert found.quantity("farthest").values == (2, 4, 6) == found.quantity("bound").values
    assert found.quantity("reach").values[0] == 2


def test_of_a_causal_model_pairs_ahead_of_the_source_alone_count(
    decoder: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliding, "WINDOW", 3)
    look = look_of(replace(decoder.subject, inputs=decoder.inputs[0]), attention=sliding)
    found = reach.answer(look)
    assert found.quantity("farthest").values == (2, 4, 6, 8)
    both = torch.tensor([[0.0, 1, 4, 2]])
    source, places = torch.tensor([1]), torch.arange(4)
    assert reach.along_distance(both, source, places).nan_to_num(-1).tolist() == [1, 2, 2, -1]
    assert reach.along_distance(both, source, places, ahead=True).nan_to_num(-1).tolist() == [1, 4, 2, -1]


def test_on_a_grid_distance_is_that_of_rows_and_columns() -> None:
    """Each patch of 3 x 3 is given the sum of the square around it: influence 1 up to a distance of 1, then none."""
    side = 3
    at = torch.stack(torch.unravel_index(torch.arange(side * side), (side, side)), 1)
    near = ((at[:, None] - at).abs().amax(-1) <= 1).double()
    sources, places = torch.tensor([1, 5]), torch.arange(1, 1 + side * side)
    influence = F.pad(near[sources - 1], (1, 0))
    assert reach.along_distance(influence, sources, places, (side, side)).tolist() == [1, 1, 0]
    assert reach.along_distance(influence, sources, places).tolist() != [1, 1, 0], "in the row it is another"
    assert reach.around(3, 2).tolist() == [1, 4, 8] and reach.around(3).tolist() == [1, 1, 1]
    assert reach.reach(torch.tensor([1.0, 1, 1]), 0.4, directions=2) == 2 != reach.reach(torch.ones(3), 0.4)
    images = replace(planted(1), inputs=((torch.zeros(1, 3, 8, 8),),))
    nine, twelve = (replace(images, subject=replace(images.subject, tokens=n)) for n in (9, 12))
    assert reach.grid_of(nine, nine.inputs[0]) == (3, 3)
    assert reach.grid_of(twelve, twelve.inputs[0]) is None
    clip = (torch.zeros(1, 8, 3, 8, 8),)
    assert reach.grid_of(replace(nine, case=case(frames=8), subject=replace(nine.subject, tokens=36)), clip) == (
        4,
        3,
        3,
    )
    assert reach.grid_of(planted(1), planted(1).inputs[0]) is None


def test_inputs_of_different_lengths_are_averaged_by_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = iter([5, TOKENS])
    monkeypatch.setattr(reach, "own_places", lambda subject, inputs: torch.arange(1, 1 + next(lengths)))
    found = reach.answer(planted(2)).quantity("influence")
    assert len(found.axes[1].ticks) == TOKENS and None not in found.values


def test_reach_is_the_distance_within_which_the_share_lies() -> None:
    profile = torch.tensor([5.0, 0.5, 0.3, 0.1, 0.1], dtype=torch.float64)
    assert reach.reach(profile, 0.9) == 3 and reach.reach(profile, 0.5) == 1
    assert reach.reach(torch.tensor([1.0, 0, 0])) is None
    assert reach.farthest(torch.tensor([1.0, 0.2, 0, 1e-9])) == 1


# --- cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoder() -> Look:
    """A tiny Llama with grouped heads, its prompt one shorter than its ids."""
    from test_decoders import config
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    module: Any = tiny.roughen(AutoModelForCausalLM.from_config(config("llama"))).double()
    ids = torch.randint(50, (1, 21), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids[:, :20], "use_cache": True, "logits_to_keep": 1}
    found = find_sites(module, {**inputs, "use_cache": False})
    subject = Subject(
        module,
        inputs,
        (inputs,),
        found.sites,
        prefix=0,
        tokens=19,
        units="prompt",
        logits=next_logits,
        pooled=next_logits,
        suffix=1,
        companions=found.companions,
        spread=found.spread,
    )
    look = look_of(subject)
    return replace(look, inputs=({**inputs, "input_ids": ids[:, :20]}, ids))


def test_a_token_behind_a_pruned_cache_is_the_last_of_a_pruned_prompt(decoder: Look) -> None:
    ids = decoder.inputs[1]
    inputs = decoder.inputs[0]
    scores = torch.randperm(19, generator=torch.Generator().manual_seed(3)).double()
    short = decoder.subject
    whole = replace(short, tokens=19, suffix=2)
    cut = replace(decoder.case, pruning="given", keep=0.5, layers=(2,))
    method = left_out._ByScores(scores.unsqueeze(0), torch.arange(19), 0)
    with decoder.active():
        with pruned(whole, method, cut):
            expected = next_logits(call(whole.module, {**inputs, "input_ids": ids}))
        with pruned(short, method, cut):
            behind = decoder.run(inputs).past_key_values
        counts = [len(keys[0, 0]) for keys, _ in cache.tensors_of(behind)]
        found = next_logits(cache.decode(decoder, ids[:, -1:], behind))
    assert counts == [20, 20, 11, 11]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_the_cache_is_measured_and_follows_the_formula(decoder: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LENGTHS", (100, 112))
    look = replace(decoder, inputs=decoder.inputs[:1])
    look = replace(look, beside=(replace(look, case=replace(look.case, attention="flash")),))
    assert cache.unanswerable(look) is None and "no decoder" in str(cache.unanswerable(planted(1)))
    found = cache.answer(look)
    sizes = caches.Sizes(4, 4, 2, 8, 8)
    assert {**found.settings, **vars(sizes)} == found.settings
    whole, shorter = (round(2**20 * value) for value in found.quantity("held").values if value is not None)
    assert whole == caches.cache_bytes("grouped", 20, sizes)
    assert shorter == whole - 2 * 2 * 8 * 8 * 3 * 9, "9 of 20 rows less behind the first block"
    assert caches.cache_bytes("pruned", 100, sizes) == 2 * 2 * 8 * 8 * (100 + 3 * 50)
    assert caches.cache_bytes("multi-head", 100, sizes) == 2 * caches.cache_bytes("grouped", 100, sizes)
    assert caches.cache_bytes("slim", 100, sizes) == caches.cache_bytes("grouped", 100, sizes)
    assert caches.cache_bytes("MLA", 100, sizes) == 36 * 100 * 4 * 8
    assert caches.cache_bytes("paged", 100, sizes) == caches.cache_bytes("grouped", 112, sizes)
    assert len(found.quantity("times").values) == len(found.quantity("times_flash").values) == len(cache.TIMES)
    prefill, _, shorter_prefill, _ = found.quantity("peaks").values
    assert prefill is not None and shorter_prefill is not None and prefill > shorter_prefill > whole / 2**20
    held = {place: round(2**20 * value) for place, value in found.quantity("operator_bytes").items() if value}
    for kind in ("multi-head", "grouped", "multi-query", "MLA", "slim"):
        assert held["100", kind] == caches.cache_bytes(kind, 100, sizes), kind
    assert held["112", "paged"] == held["100", "paged"] == caches.cache_bytes("paged", 112, sizes)
    assert held["100", "DMC"] >= caches.cache_bytes("DMC", 100, sizes), "padding of the heads with more slots"


def test_times_are_medians_of_the_runs_behind_the_first() -> None:
    ticks = iter([0.0, 1.0, 1.0, 3.0, 3.0, 6.0, 6.0, 9.0, 9.0, 9.5])
    runs: list[int] = []
    assert caches.timed(lambda: runs.append(1), "cpu", lambda: next(ticks)) == 2000
    assert len(runs) == 1 + caches.REPEATS


def test_long_runs_are_repeated_less() -> None:
    ticks = iter([0.0, caches.SECONDS, 100.0, 101.0])
    runs: list[int] = []
    assert caches.timed(lambda: runs.append(1), "cpu", lambda: next(ticks)) == 1e3 * caches.SECONDS
    assert len(runs) == 2
