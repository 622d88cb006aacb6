"""Rival methods of token reduction in whole models: forwards written by hand, lengths, back ends, what is refused."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import rivals
import tiny
import torch
from rivals import EXACT, METHODS
from tiny import FAMILIES, Plain, case, one_thread  # noqa: F401
from torch import Tensor

from repshift_cli import registry
from repshift_cli.attention import flash, math, vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.kernels.cut import gather
from repshift_cli.kernels.sdpa import AttentionCall, heard_by, watched_by
from repshift_cli.kernels.select import top
from repshift_cli.records import Case, Facts, UsageError, call, removals, tokens_along
from repshift_cli.reduction.engine.heard import proportional
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.seen import Seen, place_of
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.plan import Backend, expand, traits_of


def run(plain: Plain, name: str, attention: Any = vanilla, **changes: Any) -> tuple[Tensor, Any]:
    """The compared output of the model under the method, and what became of its tokens."""
    subject = tiny.subject(plain.module, plain.inputs)
    method, asked = METHODS[name].method, given(name, **changes)
    with torch.inference_mode(), attending(attention), pruned(subject, method, asked) as dropped:
        out = plain.compared(call(plain.module, plain.inputs)).clone()
    return out, dropped


def given(
    name: str, keep: float = 0.7, layers: tuple[int, ...] = (1, 2), remove: str | None = None, **own: Any
) -> Case:
    options = {**METHODS[name].options, **own}
    return case(pruning=name, keep=keep, layers=layers, remove=remove, options=tuple(options.items()))


def by_map(maps: Tensor) -> Any:
    """Attention by maps (B, H, k, k) that are given."""
    return lambda asked, answer: maps @ asked.value


def by_hand(plain: Plain, name: str, keep: float, layers: tuple[int, ...], options: Mapping[str, Any]) -> Tensor:
    """The forward written out, its tokens reduced by the method's loops at x' or at the block's end."""
    x, sizes = plain.embed(plain.inputs), None
    for layer, (attention, mlp) in enumerate(plain.blocks, start=1):
        calls: list[AttentionCall] = []

        def weighed(asked: AttentionCall, answer: Any, sizes: Any = sizes) -> Tensor:
            if options.get("proportional") == "on" and sizes is not None:
                asked = asked._replace(attn_mask=torch.tensor(sizes, dtype=torch.float64).log()[:, None, None])
            return answer(asked)

        with watched_by(weighed), heard_by(calls.append):
            branch = attention(x)
        own = {**METHODS[name].options, **options}
        of = (plain.prefix, keep, layer, len(plain.blocks), own)
        place = place_of(METHODS[name].method, given(name, **own)) if layer in layers else None
        if place == "start":
            asked = rivals.asked_each(x, calls[0], sizes or [[1.0] * x.shape[1]] * len(x), *of)
            x, sizes = rivals.by_loops(name, x, calls[0], sizes, *of)
            maps = torch.tensor([rivals.mctf_maps(a) for a in asked], dtype=x.dtype)
            with watched_by(by_map(maps) if own["ahead"] == "reuse" else partial(weighed, sizes=sizes)):
                branch = attention(x)
        x = x + branch
        if place == "middle":
            x, sizes = rivals.by_loops(name, x, calls[0], sizes, *of)
        x = x + mlp(x)
        if place == "end":
            x, sizes = rivals.by_loops(name, x, calls[0], sizes, *of)
    return plain.finish(x)


@pytest.mark.parametrize("family", ["vit", "deit_distilled", "videomae"])
@pytest.mark.parametrize("name", METHODS)
def test_a_whole_forward_is_the_one_written_by_hand(name: str, family: str) -> None:
    plain = FAMILIES[family]()
    if plain.prefix == 0 and "class token" in METHODS[name].method.TRAITS:
        return
    for options in METHODS[name].variants:
        with torch.no_grad():
            expected = by_hand(plain, name, 0.7, (1, 2), options)
            uncut = plain.forward()
        torch.testing.assert_close(run(plain, name, **options)[0], expected, **EXACT)
        assert (expected - uncut).abs().max() > 1e-3, "the reduction must show in the output"


# --- the function on tensors ------------------------------------------------------------------------------------------

FEW = torch.tensor([[1, 1, 1, 1], [1, 1, 1, -1], [1, -1, -1, -1]], dtype=torch.float64)
"""Of one length, and of cosines that binary fractions hold: tokens made of them tie to the last bit."""


def drawn(length: int, ties: bool) -> tuple[Tensor, AttentionCall, Tensor]:
    """States (2, length, 4), a call of 2 heads, and sizes (2, length)."""
    draw = torch.Generator().manual_seed(length)
    x, q, k = (
        torch.randn(2, *shape, 4, generator=draw, dtype=torch.float64) for shape in ((length,), *[(2, length)] * 2)
    )
    if ties:
        which = torch.randint(3, (2, length), generator=draw)
        q, k = (FEW[(which + shift) % 3].unsqueeze(1).expand(-1, 2, -1, -1) for shift in (0, 1))
        x = FEW[which]
    return x, AttentionCall(q, k, k), torch.randint(1, 4, (2, length), generator=draw).double()


def decided(name: str, x: Tensor, call: AttentionCall, sizes: Tensor, prefix: int, asked: Case) -> tuple[Tensor, Any]:
    """The rows that the method leaves and the new sizes, without any model."""
    method, seen = METHODS[name].method, Seen.of(2, 3)
    with_sizes = method.HEARS_SIZES and asked.option("proportional") == "on"
    seen.heard = method.hear and method.hear(proportional(call, sizes) if with_sizes else call, asked)
    free = x.shape[1] - prefix
    seen.prefix, seen.stay, seen.sizes = prefix, free - rivals.leaving(free, asked.keep), sizes
    if method.reduce is None:
        seen["resid_post"] = x[:, prefix:]
        return gather(x, prefix, top(method.score(seen, asked), seen.stay)), None
    seen["rows"] = x
    reduction = method.reduce(seen, asked)
    if reduction.merged is None:
        return reduction.rows(x, None), None
    totals = reduction.totals(x.dtype)
    return reduction.rows(x, totals), totals if reduction.sizes is None else reduction.sizes


@pytest.mark.parametrize("name", METHODS)
def test_on_tensors_it_is_the_loop_over_tokens(name: str) -> None:
    """Odd and even numbers, one token left, ties, no class token, one, and a distillation token beside it."""
    for options, prefix, free, ties in product(METHODS[name].variants, (0, 1, 2), (2, 7, 8), (False, True)):
        if prefix == 0 and "class token" in METHODS[name].method.TRAITS:
            continue
        x, asked, sizes = drawn(prefix + free, ties)
        own = {**METHODS[name].options, **options}
        rows, new = decided(name, x, asked, sizes, prefix, given(name, keep=0.5, **options))
        expected, wanted = rivals.by_loops(name, x, asked, sizes.tolist(), prefix, 0.5, 2, 3, own)
        said = f"{own}, {prefix} protected and {free} free tokens, ties: {ties}"
        torch.testing.assert_close(rows, expected, **EXACT, msg=lambda text, said=said: f"{said}: {text}")
        assert rows.shape[1] == prefix + free - free // 2 + METHODS[name].method.APPENDS
        if new is not None:
            torch.testing.assert_close(new, torch.tensor(wanted, dtype=x.dtype), **EXACT)
            lost = (sizes.sum(1) - new.sum(1)).abs().max()
            assert lost < 1e-10 or name == "vid_tldr", "sizes add up to the tokens (vid-TLDR's are weighed)"


@pytest.mark.parametrize("name", ["tome", "pitome", "mctf"])
def test_sizes_add_up_to_the_tokens_in_every_block(name: str) -> None:
    plain, calls = FAMILIES["deit_distilled"](), []
    subject, asked = tiny.subject(plain.module, plain.inputs), given(name, proportional="on")
    with (
        torch.inference_mode(),
        attending(vanilla),
        heard_by(calls.append),
        pruned(subject, METHODS[name].method, asked),
    ):
        call(plain.module, plain.inputs)
    biases = [c.attn_mask for c in calls if c.attn_mask is not None]
    assert len(biases) >= 2, "every block behind the first reduction weighs the sizes"
    for bias in biases:
        torch.testing.assert_close(bias.exp().sum(-1).flatten(), torch.full((3,), 18.0, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("name", METHODS)
def test_at_keep_1_no_bit_changes(name: str) -> None:
    plain = FAMILIES["vit"]()
    with torch.inference_mode(), attending(vanilla):
        untouched = plain.compared(call(plain.module, plain.inputs)).clone()
    assert torch.equal(run(plain, name, keep=1.0)[0], untouched)
    assert torch.equal(run(plain, name, keep=1.0, remove="0")[0], untouched)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_tokens_stay_under_every_back_end_and_their_ends_add_up(name: str) -> None:
    plain = FAMILIES["deit_distilled"]()
    first, second = (run(plain, name, attention)[1] for attention in (vanilla, flash))
    third = run(plain, name, math)[1]
    extra = METHODS[name].method.APPENDS
    lengths = [2 + 12 + extra, 2 + 9 + 2 * extra]
    for one, two, three, length in zip(first.traced, second.traced, third.traced, lengths, strict=True):
        assert torch.equal(one.places, two.places) and torch.equal(one.ends, three.ends)
        assert one.places.shape[-1] == length and one.ends.shape[-1] == 18
        stay = one.places.clamp_min(0)
        rows = torch.arange(length).expand_as(stay)
        own = one.ends.expand(len(stay), -1).gather(1, stay)
        assert torch.equal(torch.where(one.places < 0, rows, own), rows), "each row that stays is its own end"
        assert torch.equal(one.places[:, :2], torch.tensor([0, 1]).expand(len(stay), -1)), "protected ones lead"
    if "merges" in METHODS[name].method.TRAITS:
        assert (first.traced[-1].ends >= 0).all(), "no token is lost"


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_compiled_code_reduces_alike_without_a_break(name: str) -> None:
    import torch._dynamo as dynamo

    plain = FAMILIES["vit" if name in ("tome", "mctf") else "plain_torch"]()
    subject = tiny.subject(plain.module, plain.inputs)
    dynamo.reset()
    dynamo.utils.counters.clear()
    with torch.inference_mode(), attending(flash), pruned(subject, METHODS[name].method, given(name)):
        out = plain.compared(torch.compile(lambda x: call(plain.module, x), backend="eager")(plain.inputs))
    assert not dynamo.utils.counters["graph_break"]
    torch.testing.assert_close(out, run(plain, name, flash)[0], **EXACT)


def test_a_block_that_is_asked_first_is_answered_once() -> None:
    """The call that asks reaches no back end, so that what it ran on can be verified call by call."""
    plain, calls, answered = FAMILIES["vit"](), [], []
    subject, mctf = tiny.subject(plain.module, plain.inputs), METHODS["mctf"].method
    told = heard_by(answered.append, answered=True)
    with (
        torch.inference_mode(),
        attending(flash),
        pruned(subject, mctf, given("mctf")),
        heard_by(calls.append),
        told,
    ):
        call(plain.module, plain.inputs)
    assert [c.query.shape[2] for c in calls] == [17, 13, 13, 10, 10]
    assert [c.query.shape[2] for c in answered] == [17, 13, 10], "reused, the map is that of all tokens"


# --- what is refused, and why -----------------------------------------------------------------------------------------

VIT = Facts(depth=12, tokens=196, prefix=1, head_dim=64)


def the_reason(facts: Facts, variant: str, device: str = "cpu", **axes: Any) -> str | None:
    backend, method = registry.find_variant(variant)
    assert method is not None
    backends = {backend.name: Backend(registry.load(backend).OFFERS)}
    sweep = Axes.from_options({"variant": f"{backend.name}+{method.name}", "model": "x", **axes})
    options, traits = registry.options_of(method), traits_of(method)
    (only,) = expand(sweep, device, lambda *_: facts, backends, {method.name: options}, {method.name: traits})
    return only.refused


@pytest.mark.parametrize(
    ("facts", "asked", "said"),
    [
        (VIT, {"variant": "vanilla+tome", "keep": 0.4}, "at most half of the tokens of a layer: 117 of 196"),
        (replace(VIT, eager=True), {"variant": "eager+tome"}, "which its library's own does not show"),
        (
            VIT,
            {"variant": "flash+tome", "device": "cuda", "proportional": "on", "dtype": "bf16"},
            "flash takes no bias",
        ),
        (VIT, {"variant": "vanilla+fastv"}, "only in a causal model"),
        (replace(VIT, prefix=0), {"variant": "vanilla+evit"}, "column-attention needs none"),
        (replace(VIT, prefix=0), {"variant": "vanilla+cls-attention", "protect": "first:2"}, "x has none"),
        (replace(VIT, causal=True), {"variant": "vanilla+tome"}, "x is causal"),
        (replace(VIT, causal=True), {"variant": "vanilla+farthest-merge", "keep": 0.3}, "x is causal"),
        (replace(VIT, row=False), {"variant": "vanilla+pitome"}, "places of their own in each sample"),
        (replace(VIT, removals=("line",)), {"variant": "vanilla+dart"}, "are a grid"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(facts: Facts, asked: dict[str, Any], said: str) -> None:
    assert said in (the_reason(facts, **asked) or "")


def test_what_merges_any_number_may_keep_fewer_than_half() -> None:
    assert the_reason(VIT, "vanilla+farthest_merge", keep=0.1) is None


def test_farthest_merge_is_the_candidate_that_was_confirmed() -> None:
    """tests/real/candidates.py ran on the fresh data of profiles/baselines/README.md."""
    source = spec_from_file_location("candidates", Path(__file__).parent / "real" / "candidates.py")
    assert source is not None and source.loader is not None
    module = module_from_spec(source)
    sys.modules["candidates"] = module
    source.loader.exec_module(module)
    seen = Seen.of(2, 3)
    seen.prefix, seen.suffix, seen.stay = 1, 1, 9
    seen["rows"] = torch.randn(3, 19, 8, generator=torch.Generator().manual_seed(0))
    states = module.States(resid_post=seen["rows"][:, 1:-1])
    states["mlp_out"], states["resid_mid"], states.stay = states["resid_post"], states["resid_post"], seen.stay
    candidate = module.candidates()["merge greedy"].reduce(states, seen)
    method = METHODS["farthest_merge"].method.reduce(seen, case(pruning="farthest_merge"))
    assert all(torch.equal(a, b) for a, b in zip(method[:3], candidate[:3], strict=True))


class Parallel(tiny.PreNorm):
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return x + self.mix(y) + self.feed(y)


@pytest.mark.parametrize(("name", "said"), [("tome", "have no state there"), ("mctf", "have none apart")])
def test_branches_that_stand_side_by_side_are_refused(name: str, said: str) -> None:
    module, inputs = tiny.roughen(tiny.PlainTransformer(Parallel)), (torch.randn(2, 12, tiny.WIDTH),)
    with pytest.raises(UsageError, match=said), pruned(tiny.subject(module, inputs), METHODS[name].method, given(name)):
        pass


class Twice(tiny.Attention):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x)


def test_a_map_is_not_reused_where_a_block_has_two() -> None:
    module, inputs = tiny.roughen(tiny.PlainTransformer()), (torch.randn(2, 12, tiny.WIDTH),)
    for block in module.blocks:
        block.mix.__class__ = Twice
    subject = tiny.subject(module, inputs)
    with (
        pruned(subject, METHODS["mctf"].method, given("mctf")),
        pytest.raises(UsageError, match="calls attention 2 times"),
    ):
        module(*inputs)


def test_where_no_bias_is_taken_the_row_says_that_it_ran_without() -> None:
    taken = {}
    for device in ("cpu", "cuda"):
        backend, method = registry.find_variant("flash+tome")
        assert method is not None
        backends = {"flash": Backend(registry.load(backend).OFFERS)}
        axes = Axes(variant=("flash+tome",))
        (only,) = expand(axes, device, lambda *_: VIT, backends, {"tome": registry.options_of(method)})
        taken[device] = only.case.option("proportional")
    assert taken == {"cpu": "on", "cuda": "off"}


def test_fixed_counts_are_those_of_tomes_schedules() -> None:
    assert removals("16", 3) == (16, 16, 16)
    assert removals("30:0", 12) == (30, 27, 24, 21, 19, 16, 13, 10, 8, 5, 2, 0)
    assert run(FAMILIES["vit"](), "tome", remove="3:1")[1].kept[-1].shape[1] == 17 - 3 - 1
    assert tokens_along(VIT, 1.0, tuple(range(1, 13)), "16")[-3:] == (37, 21, 11), "at most half, as in their code"
    assert Axes.from_options({"layers": "all"}).as_options()["layers"] == ["all"]


@pytest.mark.parametrize("name", ["tome", "pitome", "vid_tldr", "mctf", "evit"])
def test_down_to_one_token_and_no_further(name: str) -> None:
    dropped = run(FAMILIES["vit"](), name, remove="15", layers=(1, 2, 3))[1]
    assert [places.shape[1] for places in dropped.kept] == ([9, 5, 3] if name != "evit" else [10, 7, 5])
    small = run(FAMILIES["vit"](), name, keep=0.97, layers=(1,))[1]
    assert small.kept[0].shape[1] == 17, "3% of 16 tokens are none"
