"""Every attention operator against its own definition in float64, and what each says of itself."""

import shutil
import weakref
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from operator_cases import NAMES, SPEC, arranged, cells, distance, engines, inputs, operator, run
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from repshift_cli.operators import CLASSES
from repshift_cli.operators.base import flex, masks, rows
from repshift_cli.operators.base.counts import full_macs
from repshift_cli.operators.base.spec import Shape

LOW = {"bf16": 0.02, "fp16": 0.004}
"""Bounds of the relative error in low precision (2^-8 and 2^-11 per rounding), on inputs of unit size."""
LOOSE = {"log_linear": 3, "mta": 3, "slim": 30, "softcap": 3, "shaw": 2, "transformer_xl": 2, "additive": 2}
"""Operators whose rounding adds up: times so much. Slim attention's grows with the condition number of W_K."""
CHOOSING = ("xattention", "nsa", "lessismore")
"""A choice among near-equal scores may fall otherwise in low precision: they are held against choosing everything."""


@pytest.mark.parametrize("name", NAMES)
def test_every_engine_is_its_definition_in_float64(name: str) -> None:
    module = operator(name)
    tried = 0
    for shape, spec in cells(module):
        made = arranged(module, shape, spec)
        expected = module.reference(made.q, made.k, made.v, spec, **made.parameters)
        assert expected.shape == (shape.batch, shape.heads, shape.queries, shape.head_dim)
        for engine, how in engines(module):
            out = run(how, made, spec)
            assert torch.allclose(out, expected, atol=1e-10, rtol=0), (engine, shape, spec.causal)
            tried += 1
    needs_more = name in ("cudnn", "efficient", "flex") or name.startswith("flash_attn")
    assert (tried > 0) != needs_more, "only what needs CUDA, a package or a compiler may go untried here"


def test_runs_of_rows_keep_nothing_but_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run leaves behind lies between the large scores of the next ones, and the heap grows by them all."""
    made: list[weakref.ref[Tensor]] = []

    def part(begin: int, end: int) -> Tensor:
        assert torch.is_grad_enabled() or sum(ref() is not None for ref in made) <= 1
        made.append(weakref.ref(rows := torch.arange(begin, end).double().view(1, 1, -1, 1)))
        return rows

    with torch.no_grad():
        assert rows.by_runs(7, 2, part, 4).flatten().tolist() == list(range(7)) and len(made) == 4
    assert rows.by_runs(7, 2, part, 4).flatten().tolist() == list(range(7))


@pytest.mark.parametrize("gradients", [False, True])
def test_several_runs_of_rows_are_one(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for name in NAMES:

        def few(n: int, per_row: int, most: int = 0, name: str = name) -> list[tuple[int, int]]:
            counts[name] += 1
            return iter([(begin, min(begin + 7, n)) for begin in range(0, n, 7)])  # type: ignore[return-value]

        monkeypatch.setattr(rows, "runs", few)
        module = operator(name)
        for shape, spec in cells(module, [(2, 4, 2, 37)]):
            made = arranged(module, shape, spec)
            expected = module.reference(made.q, made.k, made.v, spec, **made.parameters)
            for _, how in engines(module):
                with torch.set_grad_enabled(gradients), how.session():
                    out = how.attend(made.q, made.k, made.v, spec, **made.parameters)
                assert torch.allclose(out, expected, atol=1e-10, rtol=0), name
    assert {"additive", "alibi", "block_sparse", "mta", "nsa", "shaw", "simplicial2", "transformer_xl"} <= set(counts)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CHOOSING])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_low_precision_stays_within_its_bound(name: str, dtype: str) -> None:
    module = operator(name)
    for shape, spec in cells(module, [(2, 4, 4, 64)]):
        made = arranged(module, shape, spec, {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
        wide = {n: p.double() if p.is_floating_point() else p for n, p in made.parameters.items()}
        expected = module.reference(made.q.double(), made.k.double(), made.v.double(), spec, **wide)
        for engine, how in engines(module):
            error = distance(run(how, made, spec), expected)
            assert error < LOW[dtype] * LOOSE.get(name, 1), (engine, spec.causal, error)


@pytest.mark.parametrize("name", CHOOSING)
def test_low_precision_attends_to_what_it_chose(name: str) -> None:
    module = operator(name)
    whole = {"xattention": {"tau": 1.0}, "nsa": {"top": 99}, "lessismore": {"budget": 1.0}}[name]
    for shape, spec in cells(module, [(2, 4, 4, 64)]):
        spec = replace(spec, **whole)  # type: ignore[arg-type]
        made = arranged(module, shape, spec, torch.bfloat16)
        wide = {n: p.double() if p.is_floating_point() else p for n, p in made.parameters.items()}
        expected = module.reference(made.q.double(), made.k.double(), made.v.double(), spec, **wide)
        assert distance(run(module.ENGINES["plain"], made, spec), expected) < LOW["bf16"]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_finite_and_right(name: str) -> None:
    module = operator(name)
    for shape, spec in cells(module, [(1, 2, 2, 9), (1, 2, 2, 64)]):
        made = arranged(module, shape, spec)
        leaves = [made.q.requires_grad_(), made.k.detach().requires_grad_(), made.v.detach().requires_grad_()]
        probe = torch.randn(made.q.shape[0], shape.heads, shape.queries, shape.head_dim, dtype=torch.float64)
        expected = module.reference(*leaves, spec, **made.parameters)
        wanted = torch.autograd.grad(expected, leaves, probe, allow_unused=True, materialize_grads=True)
        for engine, how in engines(module):
            if "cpu" not in how.backward:
                continue
            with how.session():
                out = how.attend(*leaves, spec, **made.parameters)
            found = torch.autograd.grad(out, leaves, probe, allow_unused=True, materialize_grads=True)
            for a, b in zip(found, wanted, strict=True):
                assert torch.allclose(a, b, atol=1e-9), (engine, spec.causal)


@pytest.mark.parametrize("name", NAMES)
def test_an_operator_says_what_it_is_and_costs(name: str) -> None:
    module = operator(name)
    assert module.CLASS in CLASSES and module.PAPER
    assert "plain" in module.ENGINES and set(module.CAUSAL) <= {False, True}
    for shape, spec in cells(module, [(1, 4, 4, 64), (2, 4, 4, 64)]):
        one, twice = module.cost(replace(shape, batch=1), spec), module.cost(replace(shape, batch=2), spec)
        assert one.macs > 0 and one.moved > 0 and one.held >= 0
        assert twice.macs == 2 * one.macs
        if module.CLASS == "exact" and name not in ("additive", "mla"):
            assert one.macs == full_macs(replace(shape, batch=1), spec.causal)


def test_macs_of_the_masks_are_the_pairs_that_they_let_through() -> None:
    for n, (left, right) in ((1, (5, 5)), (37, (7, 0)), (37, (6, 6)), (9, (20, 20))):
        assert masks.band_pairs(n, left, right) == int(masks.dense(masks.band(left, right), n, n).sum())
    for causal in (False, True):
        assert masks.pairs(13, causal) == int(masks.dense(masks.causal if causal else masks.everything, 13, 13).sum())
    sliding, spec = operator("sliding"), replace(SPEC, causal=True)
    seen = int(masks.dense(masks.window(spec.window, True), 64, 64).sum())
    assert sliding.cost(Shape(2, 4, 4, 64, 16, 64), spec).macs == 2 * 4 * seen * 2 * 16


WHOLE = (
    "softmax",
    "math",
    "alibi",
    "softcap",
    "pasta",
    "shaw",
    "linformer",
    "efficient_linear",
    "linear",
    "log_linear",
)
WHOLE += ("reformer", "swin", "swin_shifted", "block_sparse", "xattention", "slim", "paged", "lessismore")
"""Plain forms that compute what their formula counts, where no causal mask hides half of it."""
TRIANGLE = ("softmax", "math", "alibi", "softcap", "pasta", "mta", "block_sparse")
"""Those that compute the hidden half too."""


@pytest.mark.parametrize("name", sorted({*WHOLE, *TRIANGLE, "sliding", "streaming", "longformer", "nsa"}))
def test_macs_by_formula_are_those_that_torch_counts(name: str) -> None:
    module = operator(name)
    for shape, spec in cells(module, [(2, 4, 4, 64)]):
        made = arranged(module, shape, spec, torch.float32)
        counter = FlopCounterMode(display=False)
        with counter:
            run(module.ENGINES["plain"], made, spec)
        counted, by_formula = counter.get_total_flops() // 2, module.cost(shape, spec).macs
        if name in TRIANGLE and spec.causal:
            assert by_formula == counted * 65 // 128, spec
        elif name in WHOLE and (not spec.causal or module.CAUSAL == (True,) or name in ("linear", "reformer")):
            assert by_formula == counted, spec
        else:
            assert 0.3 * counted < by_formula < counted, "whole blocks are computed, and what the mask hides in them"


@pytest.mark.parametrize("name", ["sliding", "longformer", "streaming"])
def test_the_mask_that_flex_is_given_is_the_reference_s(name: str) -> None:
    module = operator(name)
    for causal in module.CAUSAL:
        spec = replace(SPEC, causal=causal)
        q, k, v = inputs(1, 2, 2, 50)
        dense = masks.dense(module.seen(spec), 50, 50)
        scores = (q @ k.transpose(-2, -1) / 4).masked_fill(~dense, -torch.inf)
        expected = torch.softmax(scores, -1) @ v
        assert torch.allclose(module.reference(q, k, v, spec), expected, atol=1e-12)


def dense_flex(
    q: Tensor, k: Tensor, v: Tensor, score_mod: Any = None, block_mask: Any = None, enable_gqa: bool = False
) -> Tensor:
    """What FlexAttention is given, written out: its mask place by place within the blocks that it does not skip."""
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    places = torch.arange(q.shape[2])
    at = (*torch.meshgrid(*map(torch.arange, q.shape[:2]), indexing="ij"),)
    batch, head = (t[:, :, None, None] for t in at)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if score_mod is not None:
        scores = score_mod(scores, batch, head, places[:, None], places)
    if block_mask is not None:
        rows, columns = block_mask.BLOCK_SIZE
        blocks = block_mask.to_dense().bool().repeat_interleave(rows, 2).repeat_interleave(columns, 3)
        seen = block_mask.mask_mod(batch, head, places[:, None], places)
        scores = scores.masked_fill(~(seen & blocks[:, :, : len(places), : len(places)]), -torch.inf)
    return torch.softmax(scores, -1) @ v


FLEX = [(name, e) for name in NAMES for e, how in operator(name).ENGINES.items() if how.ops == flex.COMPILED]


@pytest.mark.parametrize(("name", "engine"), FLEX)
def test_what_flex_is_given_is_the_dense_definition(name: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "compiled", lambda *key: dense_flex)
    module = operator(name)
    shapes = [(2, 4, 2, 300)]  # more than two of Flex's own blocks of 128
    for shape, spec in cells(module, shapes):
        made = arranged(module, shape, replace(spec, block=128))
        expected = module.reference(made.q, made.k, made.v, replace(spec, block=128), **made.parameters)
        out = module.ENGINES[engine].attend(made.q, made.k, made.v, replace(spec, block=128), **made.parameters)
        assert torch.allclose(out, expected, atol=1e-10, rtol=0), spec.causal


COMPILING = [("sliding", False), ("alibi", True), ("block_sparse", True)]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("name", "causal"), COMPILING)
def test_flex_compiled_is_the_definition(name: str, causal: bool) -> None:
    module = operator(name)
    spec = replace(SPEC, causal=causal, block=128 if name == "block_sparse" else 16, density=0.5)
    q, k, v = (t.float() for t in inputs(1, 2, 2, 300, 16))
    made = module.arrange(q, k, v, spec)
    wide = {n: p.double() if p.is_floating_point() else p for n, p in made.parameters.items()}
    expected = module.reference(q.double(), k.double(), v.double(), spec, **wide)
    with torch.no_grad():
        assert distance(run(module.ENGINES["flex"], made, spec), expected) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_flex_stays_compiled_over_many_shapes(recwarn: pytest.WarningsRecorder) -> None:
    engine = operator("flex").ENGINES["plain"]
    for n in (40, 41):
        q, k, v = (t.float() for t in inputs(1, 1, 1, n, 16))
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
            engine.attend(q, k, v, SPEC)
    assert not [w for w in recwarn if "without torch.compile" in str(w.message)]


def test_flex_is_refused_where_nothing_can_compile_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C++ compiler" in (flex.unavailable("cpu") or "")


@pytest.mark.parametrize(
    ("name", "shape", "changes", "words"),
    [
        ("efficient", (1, 4, 2, 64), {}, "as many KV heads"),
        ("slim", (1, 4, 2, 64), {}, "square W_K"),
        ("swin", (1, 4, 4, 37), {}, "no grid"),
        ("reformer", (1, 4, 4, 64), {"buckets": 5}, "even number"),
        ("mta", (1, 3, 3, 64), {}, "pairs"),
        ("xattention", (1, 4, 4, 64), {"stride": 5}, "whole strides"),
        ("longformer", (1, 4, 4, 64), {"dilation": 2}, "dilated"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    name: str, shape: tuple[int, int, int, int], changes: dict[str, int], words: str
) -> None:
    batch, heads, kv_heads, tokens = shape
    module = operator(name)
    refused = module.refused(Shape(batch, heads, kv_heads, tokens, 16, tokens), replace(SPEC, **changes))  # type: ignore[arg-type]
    assert words in refused


@pytest.mark.parametrize("name", ["cudnn", "efficient", "flash_attn2", "flash_attn3", "flash_attn4"])
def test_what_needs_cuda_or_a_package_says_so(name: str) -> None:
    reason = operator(name).ENGINES["plain"].unavailable("cpu")
    assert "CUDA" in reason or "not installed" in reason
