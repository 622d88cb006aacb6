"""Pruning by hooks against plain forwards written out here: same scores, same choice, same outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import FAMILIES, Plain, case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli.attention import flash, vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.records import OPERATIONS, Case, Subject, call
from repshift_cli.reduction import lowest, oracle, random, repshift, stride
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.selection import fixed

SCHEDULES = [(0.7, (1, 2)), (0.5, (2,))]


@pytest.fixture(scope="module", params=FAMILIES)
def plain(request: pytest.FixtureRequest) -> Plain:
    return FAMILIES[request.param]()


@contextmanager
def pruning(subject: Subject, method: Any, given: Case, attention: Any = vanilla) -> Iterator[None]:
    """As assemble puts the contexts together."""
    with torch.inference_mode(), attending(attention), pruned(subject, method, given):
        yield


def run(plain: Plain, method: Any, given: Case, attention: Any = vanilla) -> Tensor:
    subject = tiny.subject(plain.module, plain.inputs)
    with pruning(subject, method, given, attention):
        return plain.compared(call(plain.module, plain.inputs))


# --- the equation, written out once more ------------------------------------------------------------------------------


def shift(seen: dict[str, Tensor], operation: str, distance: str, form: str | None) -> list[list[float]]:
    """s = D(F(x), x), Eq. 4 of the paper, token by token; `update` adds the branch to what it is compared with."""
    before, branch = (seen[name] for name in tiny.BRANCHES[operation])
    moved = before + branch if form == "update" else branch
    return [
        [D(m.tolist(), b.tolist(), distance) for m, b in zip(ms, bs, strict=True)]
        for ms, bs in zip(moved, before, strict=True)
    ]


def D(moved: list[float], origin: list[float], kind: str) -> float:
    pairs = list(zip(moved, origin, strict=True))
    if kind == "l1":
        return math.fsum(abs(m - o) for m, o in pairs)
    if kind == "l2":
        return math.sqrt(math.fsum((m - o) ** 2 for m, o in pairs))
    lengths = math.sqrt(math.fsum(m * m for m in moved)) * math.sqrt(math.fsum(o * o for o in origin))
    return 1 - math.fsum(m * o for m, o in pairs) / lengths


def best(scores: list[float], keep: float) -> list[int]:
    """Positions of the highest scores, in rising order; dropped are int(n * r), r in thousandths."""
    dropped = len(scores) * (1000 - round(1000 * keep)) // 1000
    ranked = sorted(range(len(scores)), key=lambda i: -scores[i])
    return sorted(ranked[: max(1, len(scores) - dropped)])


Scores = Callable[[dict[str, Tensor]], list[list[float]]]


def reference(plain: Plain, keep: float, layers: tuple[int, ...], scores: Scores) -> Tensor:
    """The plain forward, every sample cut by its own ranking at the end of the blocks named."""

    def cut(layer: int, seen: dict[str, Tensor]) -> Tensor:
        if layer not in layers:
            return seen["resid_post"]
        p = plain.prefix
        ranked = scores({name: t[:, p:] for name, t in seen.items()})
        rows = [[*range(p), *(p + i for i in best(s, keep))] for s in ranked]
        return torch.stack([hidden[row] for hidden, row in zip(seen["resid_post"], rows, strict=True)])

    with torch.no_grad():
        return plain.forward(cut)


# --- against the plain forward ----------------------------------------------------------------------------------------


def test_plain_forward_is_the_model(plain: Plain) -> None:
    with torch.no_grad():
        torch.testing.assert_close(
            plain.compared(call(plain.module, plain.inputs)), plain.forward(), rtol=0, atol=1e-10
        )


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
@pytest.mark.parametrize("form", ["paper", "update"])
def test_every_family_is_pruned_as_written(plain: Plain, keep: float, layers: tuple[int, ...], form: str) -> None:
    given = case(pruning="repshift", keep=keep, layers=layers, operation="mlp", distance="l2", form=form)
    expected = reference(plain, keep, layers, lambda seen: shift(seen, "mlp", "l2", form))
    torch.testing.assert_close(run(plain, repshift, given), expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        uncut = plain.forward()
    assert (expected[:, 0] - uncut[:, 0]).abs().max() > 1e-3, "the cut must show in the output"


@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
@pytest.mark.parametrize(
    ("operation", "form"), [(o, f) for o in ("mlp", "attention") for f in ("paper", "update")] + [("block", None)]
)
@pytest.mark.parametrize("family", ["dinov2_registers", "plain_torch"])
def test_every_score_is_as_written(
    family: str, operation: str, form: str | None, distance: str, keep: float, layers: tuple[int, ...]
) -> None:
    plain = FAMILIES[family]()
    given = case(pruning="repshift", keep=keep, layers=layers, operation=operation, distance=distance, form=form)
    expected = reference(plain, keep, layers, lambda seen: shift(seen, operation, distance, form))
    torch.testing.assert_close(run(plain, repshift, given), expected, rtol=0, atol=1e-10)


def test_scores_differ_so_that_the_test_above_can_fail() -> None:
    plain = FAMILIES["dinov2_registers"]()
    kinds = [(o, d, f) for o in OPERATIONS for d in ("l2", "l1", "cosine") for f in ("paper", "update")]
    seen: list[dict[str, Tensor]] = []

    def look(layer: int, found: dict[str, Tensor]) -> Tensor:
        seen.append({name: t[:, plain.prefix :] for name, t in found.items()})
        return found["resid_post"]

    with torch.no_grad():
        plain.forward(look)
    choices = {
        (o, d, None if o == "block" else f): str(
            [best(s, 0.5) for s in shift(seen[0], o, d, None if o == "block" else f)]
        )
        for o, d, f in kinds
    }
    assert len(choices) == 15
    assert len(set(choices.values())) >= 13


def test_default_options_are_mlp_and_l2_as_printed() -> None:
    plain = FAMILIES["vit"]()
    expected = reference(plain, 0.5, (1,), lambda seen: shift(seen, "mlp", "l2", "paper"))
    torch.testing.assert_close(
        run(plain, repshift, case(pruning="repshift", keep=0.5, layers=(1,))), expected, rtol=0, atol=1e-10
    )


def test_flash_and_vanilla_prune_alike() -> None:
    plain = FAMILIES["vit"]()
    given = case(pruning="repshift", keep=0.5, layers=(1, 2), operation="mlp", distance="l2", form="update")
    by_flash, by_hand = run(plain, repshift, given, flash), run(plain, repshift, given, vanilla)
    torch.testing.assert_close(by_flash, by_hand, rtol=0, atol=1e-10)


# --- the other methods ------------------------------------------------------------------------------------------------


def test_lowest_keeps_what_repshift_drops() -> None:
    plain = FAMILIES["vit"]()
    given = case(pruning="lowest", keep=0.5, layers=(2,), operation="attention", distance="l1", form="paper")

    def turned(seen: dict[str, Tensor]) -> list[list[float]]:
        return [[-s for s in row] for row in shift(seen, "attention", "l1", "paper")]

    torch.testing.assert_close(run(plain, lowest, given), reference(plain, 0.5, (2,), turned), rtol=0, atol=1e-10)
    assert lowest.needs(given) == repshift.needs(given) == ("resid_pre", "attn_out")


def test_lowest_and_repshift_complement_each_other() -> None:
    """At keep 0.5 of an even count, on the same block, they part the tokens between them."""
    plain = FAMILIES["plain_torch"]()
    high = kept_rows(plain, repshift, case(pruning="repshift", keep=0.5, layers=(1,)))
    low = kept_rows(plain, lowest, case(pruning="lowest", keep=0.5, layers=(1,)))
    for h, lo in zip(high, low, strict=True):
        assert sorted(h + lo) == list(range(12))


def test_oracle_keeps_the_first_tokens_as_a_view() -> None:
    hidden = torch.randn(2, 9, 4)
    given = Subject(None, (), (), (), 2, 7, "img", None, None)  # type: ignore[arg-type]
    shorter = fixed(oracle.choose(7, 3), given, 9).rows(hidden)
    assert torch.equal(shorter, hidden[:, :5])
    assert shorter.data_ptr() == hidden.data_ptr()
    rows = kept_rows(FAMILIES["dinov2_registers"](), oracle, case(pruning="oracle", keep=0.3, layers=(1,)))
    assert rows == [[0, 1, 2, 3, 4]] * tiny.BATCH


@pytest.mark.parametrize(
    ("tokens", "count", "indices"),
    [(10, 5, [0, 2, 4, 6, 8]), (10, 4, [0, 2, 5, 7]), (7, 7, list(range(7))), (5, 1, [0]), (16, 3, [0, 5, 10])],
)
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_stride_is_uniform(tokens: int, count: int, indices: list[int], prefix: int) -> None:
    hidden = torch.arange(prefix + tokens).expand(2, -1).unsqueeze(-1).contiguous()
    given = Subject(None, (), (), (), prefix, tokens, "img", None, None)  # type: ignore[arg-type]
    shorter = fixed(stride.choose(tokens, count), given, prefix + tokens).rows(hidden)
    assert shorter[0, :, 0].tolist() == [*range(prefix), *(prefix + i for i in indices)]
    assert torch.equal(shorter[0], shorter[1])


def test_stride_through_the_hooks() -> None:
    rows = kept_rows(FAMILIES["vit"](), stride, case(pruning="stride", keep=0.5, layers=(1,)))
    assert rows == [list(range(0, 16, 2))] * tiny.BATCH


def test_random_follows_the_seed() -> None:
    plain = FAMILIES["vit"]()
    given = case(pruning="random", keep=0.5, layers=(1, 2))

    def once(seed: int | None) -> list[list[int]]:
        if seed is not None:
            torch.manual_seed(seed)
        return kept_rows(plain, random, given)

    assert once(3) == once(3)
    assert once(3) != once(4)
    torch.manual_seed(3)
    assert once(None) != once(None), "drawn anew in every forward"
    assert len({tuple(row) for row in once(5)}) > 1, "drawn for every sample"


def test_random_takes_every_token_alike() -> None:
    torch.manual_seed(0)
    seen = {"rows": torch.zeros(4000, 8, 1)}
    chosen = random.score(seen, case()).topk(4).indices.flatten().bincount()
    assert chosen.sum() == 16000
    assert (chosen - 2000).abs().max() < 6 * math.sqrt(4000 * 0.25)


@pytest.mark.parametrize(
    ("operation", "distance", "form", "needed"),
    [
        ("mlp", "l2", "paper", ("resid_mid", "mlp_out")),
        ("mlp", "l1", "update", ("mlp_out",)),
        ("mlp", "cosine", "update", ("resid_mid", "mlp_out")),
        ("attention", "l2", "paper", ("resid_pre", "attn_out")),
        ("attention", "l2", "update", ("attn_out",)),
        ("block", "l2", None, ("resid_pre", "resid_post")),
        (None, None, None, ("resid_mid", "mlp_out")),
    ],
)
def test_a_method_looks_at_no_more_than_it_needs(
    operation: str | None, distance: str | None, form: str | None, needed: tuple[str, ...]
) -> None:
    assert repshift.needs(case(operation=operation, distance=distance, form=form)) == needed


def test_names_that_methods_were_written_with_before_are_still_understood() -> None:
    class Older:
        """Asks for the tensors by their names of the first release."""

        choose = None

        @staticmethod
        def needs(case: Case) -> tuple[str, ...]:
            return ("middle", "mlp")

        @staticmethod
        def score(seen: dict[str, Tensor], case: Case) -> Tensor:
            return (seen["mlp"] - seen["middle"]).norm(dim=-1)

    given = case(keep=0.5, layers=(1,), pruning="repshift", operation="mlp", distance="l2", form="paper")
    plain = tiny.vit()
    torch.testing.assert_close(run(plain, Older, given), run(plain, repshift, given), rtol=0, atol=0)


# --- what is kept -----------------------------------------------------------------------------------------------------


def kept_rows(plain: Plain, method: Any, given: Case) -> list[list[int]]:
    """For each sample the tokens (counted after the prefix) that enter the block after the first cut.

    The blocks' input is watched, and its rows are looked up among those that the block before puts out unpruned.
    """
    subject = tiny.subject(plain.module, plain.inputs)
    layer = given.layers[0]
    whole: list[Tensor] = []
    shorter: list[Tensor] = []
    last = subject.sites[layer - 1].block
    handles = [
        last.register_forward_hook(lambda m, a, out: whole.append(tiny.first(out).clone())),
        subject.sites[layer].block.register_forward_pre_hook(lambda m, args: shorter.append(args[0].clone())),
    ]
    try:
        with pruning(subject, None, given):
            call(plain.module, plain.inputs)
        with pruning(subject, method, given):
            call(plain.module, plain.inputs)
    finally:
        for handle in handles:
            handle.remove()
    shorter = shorter[1:]
    assert torch.equal(whole[0][:, : plain.prefix], shorter[0][:, : plain.prefix]), "the prefix stays in its place"
    found = []
    for before, after in zip(whole[0][:, plain.prefix :], shorter[0][:, plain.prefix :], strict=True):
        same = (after[:, None] == before[None]).all(-1)
        assert same.sum(1).tolist() == [1] * len(after), "every row is one of the rows before"
        found.append(same.int().argmax(1).tolist())
    return found


@pytest.mark.parametrize("method", [repshift, lowest, random, stride, oracle], ids=lambda m: m.__name__[21:])
@pytest.mark.parametrize(("keep", "count"), [(0.3, 5), (0.7, 12), (0.99, 16), (0.01, 1)])
def test_prefix_stays_order_stays_and_the_count_is_right(plain: Plain, method: Any, keep: float, count: int) -> None:
    rows = kept_rows(plain, method, case(pruning="any", keep=keep, layers=(1,)))
    n = plain.tokens
    expected = {
        16: count,
        12: {0.3: 4, 0.7: 9, 0.99: 12, 0.01: 1}[keep],
        48: {0.3: 15, 0.7: 34, 0.99: 48, 0.01: 1}[keep],
    }
    for row in rows:
        assert row == sorted(set(row))
        assert row[-1] < n
        assert len(row) == expected[n]


def test_every_sample_is_ranked_by_itself(plain: Plain) -> None:
    given = case(pruning="repshift", keep=0.5, layers=(1,), operation="mlp", distance="l2", form="update")
    rows = kept_rows(plain, repshift, given)
    assert len({tuple(row) for row in rows}) == tiny.BATCH


def test_a_sample_does_not_depend_on_its_batch() -> None:
    plain = FAMILIES["vit"]()
    given = case(pruning="repshift", keep=0.5, layers=(1, 2))
    subject = tiny.subject(plain.module, plain.inputs)
    image = plain.inputs["pixel_values"]
    with pruning(subject, repshift, given):
        together = plain.module(pixel_values=image).logits
        alone = plain.module(pixel_values=image[1:2]).logits
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize("keep", [0.001, 0.05])
def test_one_token_stays_at_least(plain: Plain, keep: float) -> None:
    given = case(pruning="repshift", keep=keep, layers=(1, 2))
    expected = reference(plain, keep, (1, 2), lambda seen: shift(seen, "mlp", "l2", "paper"))
    torch.testing.assert_close(run(plain, repshift, given), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_every_dtype_is_scored(dtype: torch.dtype, distance: str) -> None:
    module = tiny.roughen(tiny.PlainTransformer()).to(dtype)
    inputs = (tiny.pixels(2, 12, tiny.WIDTH).to(dtype),)
    given = case(pruning="repshift", keep=0.5, layers=(1,), operation="mlp", distance=distance, form="update")
    with pruning(tiny.subject(module, inputs), repshift, given):
        out = call(module, inputs)
    assert out.dtype == dtype
    assert out.isfinite().all()


# --- the model is not ours --------------------------------------------------------------------------------------------


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


def test_keep_1_is_the_untouched_model_bit_for_bit(plain: Plain) -> None:
    subject = tiny.subject(plain.module, plain.inputs)
    given = case(pruning="repshift", keep=1.0, layers=(1, 2))
    with torch.inference_mode():
        before = plain.compared(call(plain.module, plain.inputs))
        with pruned(subject, repshift, given):
            assert hooks_of(plain.module) == 0
            assert torch.equal(before, plain.compared(call(plain.module, plain.inputs)))
    by_flash = run(plain, repshift, given, flash)
    if plain.module.__class__ is tiny.Encoder:  # torch's own fused encoder layer is off while attention is swapped
        torch.testing.assert_close(by_flash, before, rtol=0, atol=1e-12)
    else:
        assert torch.equal(before, by_flash)


@pytest.mark.parametrize("method", [repshift, lowest, random, stride, oracle], ids=lambda m: m.__name__[21:])
def test_the_model_is_as_it_was_afterwards(plain: Plain, method: Any) -> None:
    original = F.scaled_dot_product_attention
    with torch.inference_mode():
        before = plain.compared(call(plain.module, plain.inputs))
    cut = run(plain, method, case(pruning="any", keep=0.3, layers=(1,)))
    assert hooks_of(plain.module) == 0
    assert F.scaled_dot_product_attention is original
    with torch.inference_mode():
        after = plain.compared(call(plain.module, plain.inputs))
    assert torch.equal(before, after)
    assert not torch.equal(before, cut)


@pytest.mark.parametrize("where", ["before", "inside", "after"])
def test_the_model_is_as_it_was_after_an_exception(where: str) -> None:
    plain = FAMILIES["vit"]()
    subject = tiny.subject(plain.module, plain.inputs)
    original, fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    with torch.inference_mode():
        before = plain.compared(call(plain.module, plain.inputs))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    target = {"before": subject.sites[0].block, "inside": subject.sites[1].mlp, "after": subject.sites[2].block}[where]
    handle = target.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), pruning(subject, repshift, case(keep=0.5, layers=(1, 2))):
        call(plain.module, plain.inputs)
    handle.remove()
    assert hooks_of(plain.module) == 0
    assert F.scaled_dot_product_attention is original
    assert torch.backends.mha.get_fastpath_enabled() == fast
    with torch.inference_mode():
        assert torch.equal(before, plain.compared(call(plain.module, plain.inputs)))


def test_a_forward_that_broke_leaves_nothing_for_the_next_one() -> None:
    """The tensors seen in a forward that stopped half way are not scored in the next, which has another batch."""
    plain = FAMILIES["vit"]()
    subject = tiny.subject(plain.module, plain.inputs)
    given = case(pruning="repshift", keep=0.5, layers=(1,))
    fails = [True]

    def fail(*_: Any) -> None:
        if fails.pop():
            raise ZeroDivisionError

    with pruning(subject, repshift, given):
        handle = subject.sites[0].mlp.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            call(plain.module, plain.inputs)
        handle.remove()
        again = plain.module(pixel_values=plain.inputs["pixel_values"][:2]).logits
    torch.testing.assert_close(again, run(plain, repshift, given)[:2], rtol=0, atol=1e-10)


def test_a_layer_that_cannot_be_hooked_leaves_no_hook_behind() -> None:
    plain = FAMILIES["vit"]()
    subject = tiny.subject(plain.module, plain.inputs)
    with pytest.raises(IndexError), pruning(subject, repshift, case(keep=0.5, layers=(1, 9))):
        pytest.fail("there is no block 9")
    assert hooks_of(plain.module) == 0


# --- blocks that pass more than the hidden states ---------------------------------------------------------------------


class Talkative(nn.Module):
    """A pre-norm block with its mask first, an attention that gives (weights, mixed), and a tuple as its output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny.PreNorm()
        self.mix = WithWeights(self.inner.mix)

    def forward(self, scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, mixed = self.mix(scale, self.inner.first(x))
        x = x + mixed
        return weights, x + self.inner.feed(self.inner.second(x))


class WithWeights(nn.Module):
    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, scale: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x), 1, x.shape[1], x.shape[1]), scale * self.mix(x)


class TalkativeModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, tiny.WIDTH))
        self.blocks = nn.ModuleList(Talkative() for _ in range(tiny.DEPTH))

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        for block in self.blocks:
            _, x = block(torch.full((1,), 0.5, dtype=x.dtype), x)
        return x


@pytest.mark.parametrize("operation", OPERATIONS)
def test_hooks_look_at_the_tokens_wherever_they_stand(operation: str) -> None:
    module: Any = tiny.roughen(TalkativeModel()).double()

    def block(b: Any) -> tiny.Block:
        return (lambda x: 0.5 * b.inner.mix(b.inner.first(x))), (lambda x: b.inner.feed(b.inner.second(x)))

    plain = Plain(
        module,
        {"tokens": tiny.pixels(tiny.BATCH, 12, tiny.WIDTH)},
        prefix=1,
        tokens=12,
        embed=lambda inputs: torch.cat((module.cls_token.expand(tiny.BATCH, -1, -1), inputs["tokens"]), dim=1),
        blocks=[block(b) for b in module.blocks],
        finish=lambda x: x,
        compared=lambda out: out,
    )
    form = None if operation == "block" else "paper"
    given = case(pruning="repshift", keep=0.5, layers=(1, 2), operation=operation, distance="l2", form=form)
    expected = reference(plain, 0.5, (1, 2), lambda seen: shift(seen, operation, "l2", form))
    torch.testing.assert_close(run(plain, repshift, given), expected, rtol=0, atol=1e-10)
