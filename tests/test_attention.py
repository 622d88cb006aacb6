"""Attention back ends: the same numbers, one seam, and a verdict on what really ran."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import case, one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from repshift_cli import registry
from repshift_cli.attention import cudnn, efficient, flash, flash_attn2, flash_attn3, flash_attn4, vanilla
from repshift_cli.attention import math as math_backend
from repshift_cli.attention.base.packages import adapted
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark.verification import WrongKernel, judge, verify
from repshift_cli.records import Step, Subject, call

SDPA = F.scaled_dot_product_attention
ORIGINAL = "_scaled_dot_product_flash_attention_for_cpu"


def qkv(queries: int = 7, keys: int = 9, heads: int = 4, kv_heads: int = 4, dim: int = 8) -> tuple[Tensor, ...]:
    shapes = ((2, heads, queries, dim), (2, kv_heads, keys, dim), (2, kv_heads, keys, dim))
    return tuple(tiny.pixels(*shape, seed=i) for i, shape in enumerate(shapes))


def masks() -> dict[str, Tensor]:
    seen = tiny.pixels(7, 9, seed=5) > -0.3
    seen[:, 0] = True
    return {
        "bool": seen,
        "bool per sample": (tiny.pixels(2, 1, 1, 9, seed=6) > 0).index_fill(3, torch.tensor([4]), True),
        "float": tiny.pixels(2, 4, 7, 9, seed=7),
        "float with -inf": torch.zeros(7, 9, dtype=torch.float64).masked_fill(~seen, float("-inf")),
    }


# --- efficient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [False, True])
def test_efficient_repeats_grouped_keys_where_its_kernel_takes_none(
    taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch says of its kernel is played; the numbers are those of grouped attention either way."""
    told: list[tuple[int, bool]] = []

    def torchs(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        told.append((key.shape[1], options.get("enable_gqa", False)))
        return SDPA(query, key, value, **options)

    monkeypatch.setattr(torch._C._nn, "scaled_dot_product_attention", torchs)
    monkeypatch.setattr(efficient, "can_use_efficient_attention", lambda params: taken)
    grouped = qkv(queries=9, kv_heads=2)
    expected = vanilla.attend(*grouped, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(efficient.attend(*grouped, is_causal=True, enable_gqa=True), expected)
    torch.testing.assert_close(efficient.attend(*qkv(), scale=0.3), vanilla.attend(*qkv(), scale=0.3))
    assert told == [(2, True) if taken else (4, False), (4, False)]


def test_torch_itself_is_asked_whether_the_kernel_takes_groups() -> None:
    assert not efficient._takes_groups(*qkv(queries=9, kv_heads=2), None, 0.0, True)


# --- vanilla ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, *masks()])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_vanilla_is_torchs_attention(kind: str | None, scale: float | None) -> None:
    mask = masks()[kind] if kind else None
    with sdpa_kernel(SDPBackend.MATH):
        expected = SDPA(*qkv(), attn_mask=mask, scale=scale)
    given = vanilla.attend(*qkv(), attn_mask=mask, scale=scale)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (4, 9), (9, 4)])
def test_vanilla_is_causal_like_torch(queries: int, keys: int) -> None:
    """Also where the lengths differ: torch's causal mask is aligned at the top left."""
    q, k, v = qkv(queries, keys)
    with sdpa_kernel(SDPBackend.MATH):
        expected = SDPA(q, k, v, is_causal=True)
    torch.testing.assert_close(vanilla.attend(q, k, v, is_causal=True), expected, rtol=0, atol=1e-12)
    assert (expected - SDPA(q, k, v)).abs().max() > 0.01


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_vanilla_shares_heads_like_torch(kv_heads: int) -> None:
    q, k, v = qkv(kv_heads=kv_heads)
    with sdpa_kernel(SDPBackend.MATH):
        expected = SDPA(q, k, v, enable_gqa=True)
    torch.testing.assert_close(vanilla.attend(q, k, v, enable_gqa=True), expected, rtol=0, atol=1e-12)


def test_vanilla_gives_nothing_where_nothing_may_be_seen() -> None:
    """A row whose mask hides everything is 0, as in torch, and not NaN."""
    mask = torch.ones(7, 9, dtype=torch.bool)
    mask[2] = False
    with sdpa_kernel(SDPBackend.MATH):
        expected = SDPA(*qkv(), attn_mask=mask)
    assert (expected[:, :, 2] == 0).all()
    torch.testing.assert_close(vanilla.attend(*qkv(), attn_mask=mask), expected, rtol=0, atol=1e-12)


def test_vanilla_drops_out_while_training() -> None:
    q, k, v = qkv()
    torch.manual_seed(0)
    assert torch.equal(
        vanilla.attend(q, k, torch.ones_like(v), dropout_p=0.0), vanilla.attend(q, k, torch.ones_like(v))
    )
    dropped = vanilla.attend(q, k, torch.ones_like(v), dropout_p=0.5)
    assert dropped.std() > 0.05
    assert (dropped == 0).all() == (vanilla.attend(q, k, v, dropout_p=1.0) == 1).all()
    assert (vanilla.attend(q, k, v, dropout_p=1.0) == 0).all()


def test_vanilla_materialises_the_scores() -> None:
    """The (N, N) matrix is in memory: three operators, no fused one."""
    with torch.profiler.profile(profile_memory=True) as recorded:
        vanilla.attend(*(t.float() for t in qkv(queries=64, keys=64)))
    names = {e.name for e in recorded.events()}
    assert {"aten::matmul", "aten::_softmax"} <= names
    assert not any("scaled_dot_product" in name for name in names)
    largest = max(getattr(e, "cpu_memory_usage", 0) for e in recorded.events())
    assert largest == 2 * 4 * 64 * 64 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_vanilla_in_every_dtype_that_it_offers(dtype: torch.dtype) -> None:
    q, k, v = (t.to(dtype) for t in qkv())
    out = vanilla.attend(q, k, v)
    assert out.dtype == dtype
    torch.testing.assert_close(out, SDPA(q, k, v), rtol=0.05, atol=0.05)


# --- the seam ---------------------------------------------------------------------------------------------------------


def backend(attend: Any = None, session: Any = nullcontext) -> Any:
    return SimpleNamespace(attend=attend, session=session)


def test_the_seam_swaps_and_restores() -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    with attending(vanilla):
        assert F.scaled_dot_product_attention is vanilla.attend
        assert torch.nn.functional.scaled_dot_product_attention is vanilla.attend
        assert not torch.backends.mha.get_fastpath_enabled()
    assert F.scaled_dot_product_attention is SDPA
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.parametrize("fast", [True, False])
def test_the_seam_restores_after_an_exception(fast: bool) -> None:
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        with pytest.raises(ZeroDivisionError), attending(vanilla):
            raise ZeroDivisionError
        assert F.scaled_dot_product_attention is SDPA
        assert torch.backends.mha.get_fastpath_enabled() == fast
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def test_the_seam_restores_when_a_session_does_not_begin() -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError), attending(backend(vanilla.attend, broken)):
        pytest.fail("not reached")
    assert F.scaled_dot_product_attention is SDPA


def test_seams_nest() -> None:
    with attending(vanilla):
        with attending(backend(len)):
            assert F.scaled_dot_product_attention is len
        assert F.scaled_dot_product_attention is vanilla.attend
    assert F.scaled_dot_product_attention is SDPA


ENABLED = {
    flash: torch.backends.cuda.flash_sdp_enabled,
    efficient: torch.backends.cuda.mem_efficient_sdp_enabled,
    math_backend: torch.backends.cuda.math_sdp_enabled,
    cudnn: torch.backends.cuda.cudnn_sdp_enabled,
}


@pytest.mark.parametrize("part", ENABLED, ids=lambda m: m.__name__[23:])
def test_one_sdpa_back_end_is_forced_and_left(part: ModuleType) -> None:
    before = {other: enabled() for other, enabled in ENABLED.items()}
    with attending(part):
        assert {other: enabled() for other, enabled in ENABLED.items()} == {other: other is part for other in ENABLED}
        assert F.scaled_dot_product_attention is (part.attend or SDPA)
    assert {other: enabled() for other, enabled in ENABLED.items()} == before


@pytest.mark.parametrize("part", [flash, math_backend, vanilla], ids=lambda m: m.__name__[23:])
def test_back_ends_on_a_cpu_agree(part: ModuleType) -> None:
    q, k, v = qkv()
    with attending(part):
        out = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, vanilla.attend(q, k, v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", [efficient, cudnn], ids=lambda m: m.__name__[23:])
def test_back_ends_that_need_cuda_say_so(part: ModuleType) -> None:
    assert part.unavailable("cpu") == "exists on CUDA only"
    assert part.unavailable("cuda:1") is None


def test_every_back_end_has_the_whole_interface() -> None:
    for name in registry.parts("attention"):
        part = registry.load(registry.find("attention", name))
        assert part.attend is None or callable(part.attend), name
        assert isinstance(part.OPS, tuple), name
        re.compile(part.KERNELS)
        assert part.OPS or part.KERNELS or name == "none", f"{name} could not be verified"
        assert set(part.OFFERS.dtypes) <= {"cpu", "cuda"}, name
        reason = part.unavailable("cpu")
        assert reason is None or reason.strip(), name
        with part.session():
            pass


# --- verification -----------------------------------------------------------------------------------------------------


def step(module: nn.Module, part: Any, inputs: Any = None) -> Step:
    subject: Any = SimpleNamespace(module=module, inputs=inputs)

    @contextmanager
    def active() -> Iterator[None]:
        with torch.inference_mode(), attending(part):
            yield

    given = (torch.randn(2, 12, tiny.WIDTH),) if inputs is None else inputs
    whole: Subject = subject
    return Step(case(), whole, active, lambda: call(module, given), lambda i: call(module, i))


def test_flash_on_a_cpu_is_verified() -> None:
    model = tiny.PlainTransformer().eval()
    assert verify(step(model, flash), flash.OPS, flash.KERNELS) == f"flash_attention_for_cpu ×{tiny.DEPTH}"
    assert F.scaled_dot_product_attention is SDPA


def test_math_and_vanilla_on_a_cpu_are_verified() -> None:
    model = tiny.PlainTransformer().eval()
    assert verify(step(model, math_backend), math_backend.OPS, "") == f"attention_math ×{tiny.DEPTH}"
    assert verify(step(model, vanilla), vanilla.OPS, "") == f"softmax ×{tiny.DEPTH}"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_goes_through_the_seam(family: str) -> None:
    plain = tiny.FAMILIES[family]()
    for part in (flash, vanilla):
        assert verify(step(plain.module, part, plain.inputs), part.OPS, part.KERNELS).endswith(f"×{tiny.DEPTH}")


class NoAttention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1)


class BoundEarly(nn.Module):
    """Kept torch's function from before the swap: `from torch.nn.functional import scaled_dot_product_attention`."""

    def __init__(self, through_the_seam: int = 0) -> None:
        super().__init__()
        self.through_the_seam = through_the_seam

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        for _ in range(self.through_the_seam):
            x = F.scaled_dot_product_attention(x, x, x)
        return SDPA(x, x, x)


@pytest.mark.parametrize("part", [flash, math_backend, vanilla], ids=lambda m: m.__name__[23:])
@pytest.mark.parametrize("model", [NoAttention(), BoundEarly()], ids=lambda m: type(m).__name__)
def test_a_model_that_never_calls_attention_is_refused(model: nn.Module, part: ModuleType) -> None:
    with pytest.raises(WrongKernel, match="never calls torch's scaled_dot_product_attention"):
        verify(step(model, part), part.OPS, part.KERNELS)
    assert F.scaled_dot_product_attention is SDPA


@pytest.mark.parametrize("session", [nullcontext, lambda: sdpa_kernel(SDPBackend.MATH)], ids=["fused", "math"])
def test_attention_that_slips_past_vanilla_is_refused(session: Any) -> None:
    """One call materialised, one on torch's own kernel, be it fused or math."""
    with pytest.raises(WrongKernel, match="attention"):
        verify(step(BoundEarly(1), backend(vanilla.attend, session)), vanilla.OPS, vanilla.KERNELS)


def test_the_wrong_operator_is_refused() -> None:
    model = tiny.PlainTransformer().eval()
    with pytest.raises(WrongKernel, match="ran on attention_math instead"):
        verify(step(model, math_backend), flash.OPS, flash.KERNELS)
    with pytest.raises(WrongKernel, match="ran on flash_attention_for_cpu instead"):
        verify(step(model, flash), vanilla.OPS, vanilla.KERNELS)
    with pytest.raises(WrongKernel, match="ran on flash_attention_for_cpu instead"):
        verify(step(model, flash), math_backend.OPS, math_backend.KERNELS)
    with pytest.raises(WrongKernel, match="0 of 3 calls of flash_attention, flash_attention_for_cpu instead"):
        verify(step(model, vanilla), flash.OPS, flash.KERNELS)


def test_a_forward_that_fails_leaves_the_original() -> None:
    model = tiny.PlainTransformer().eval()
    model.blocks[1].register_forward_hook(lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        verify(step(model, vanilla), vanilla.OPS, "")
    assert F.scaled_dot_product_attention is SDPA


FLASH_OP, CPU_OP = flash.OPS
EFFICIENT_OP, CUDNN_OP, MATH_OP = efficient.OPS[0], cudnn.OPS[0], math_backend.OPS[0]
SOFTMAX_OP = vanilla.OPS[0]
FA2 = (
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, false, cutlass::bfloat16_t>>"
)
FA2_SPLIT = "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<64, 64, 256, 4>>(Flash_fwd_params)"
FA3 = "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90>>>(P)"
FA4 = "kernel_cutlass_kernel_flash_attncuteflash_fwdFlashAttentionForwardSm90_object_at__tensorptrbf16gmemalign16"
EFFICIENT = (
    "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t>::Params)"
)
CUDNN = "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_64x128x64_4x1x1_kernel0_0"
GEMM = "nvjet_tst_128x128_64x6_1x2_h_bz_bias_TNT"
SOFTMAX = "void (anonymous namespace)::softmax_warp_forward<c10::BFloat16, c10::BFloat16, float, 8, false, false>"


@pytest.mark.parametrize(
    ("part", "op", "kernel", "said"),
    [
        (flash, FLASH_OP, FA2, "flash_fwd_kernel"),
        (flash, FLASH_OP, FA2_SPLIT, "flash_fwd_splitkv_kernel"),
        (flash, FLASH_OP, FA3, "FlashAttnFwdSm90"),
        (efficient, EFFICIENT_OP, EFFICIENT, "fmha_cutlassF_bf16_aligned_64x64_rf_sm80"),
        (cudnn, CUDNN_OP, CUDNN, "cudnn_generated_fort_native_sdpa_sm90_flash_fprop"),
        (math_backend, MATH_OP, SOFTMAX, "attention_math"),
        (vanilla, SOFTMAX_OP, SOFTMAX, "softmax"),
        (flash_attn2, None, FA2, "flash_fwd_kernel"),
        (flash_attn3, None, FA3, "FlashAttnFwdSm90"),
        (flash_attn4, None, FA4, "FlashAttentionForwardSm90"),
    ],
)
def test_device_kernels_are_named(part: Any, op: str | None, kernel: str, said: str) -> None:
    ops = Counter({op: 12} if op else {"aten::linear": 48})
    verdict = judge(12, ops, Counter({kernel: 12, GEMM: 48}), part.OPS, part.KERNELS)
    assert said in verdict
    assert verdict.endswith("×12")
    assert len(verdict) < 100, "it stands in a table"


@pytest.mark.parametrize("part", [flash, efficient, cudnn, flash_attn2, flash_attn3, flash_attn4])
def test_a_foreign_device_kernel_is_refused(part: Any) -> None:
    own_kernels = {flash: {FA2, FA3, FA4}, efficient: {EFFICIENT}, cudnn: {CUDNN}}
    own_kernels |= {flash_attn2: {FA2}, flash_attn3: {FA3}, flash_attn4: {FA4}}
    ops = Counter({part.OPS[0]: 12}) if part.OPS else Counter({"aten::linear": 48})
    for kernel in {FA2, FA3, EFFICIENT, CUDNN, SOFTMAX} - own_kernels[part]:
        with pytest.raises(WrongKernel, match="no device kernel matches"):
            judge(12, ops, Counter({kernel: 12, GEMM: 48}), part.OPS, part.KERNELS)


@pytest.mark.parametrize("part", [flash, efficient, cudnn, math_backend, vanilla, flash_attn2])
@pytest.mark.parametrize(
    "ran", [FLASH_OP, EFFICIENT_OP, CUDNN_OP, MATH_OP, "aten::_scaled_dot_product_fused_attention_overrideable"]
)
def test_another_fused_operator_is_refused(part: Any, ran: str) -> None:
    """Even where every call was answered, none may have run on something else."""
    if ran in part.OPS:
        return
    names = Counter({ran: 1, **dict.fromkeys(part.OPS[:1], 12)})
    with pytest.raises(WrongKernel, match="instead of what was asked for"):
        judge(12, names, None, part.OPS, "")


def test_calls_that_nothing_answered_are_refused() -> None:
    with pytest.raises(WrongKernel, match="11 of 12 calls of flash_attention"):
        judge(12, Counter({CPU_OP: 11}), None, flash.OPS, flash.KERNELS)
    with pytest.raises(WrongKernel, match="never calls"):
        judge(0, Counter({CPU_OP: 12}), None, flash.OPS, flash.KERNELS)
    assert judge(12, Counter({CPU_OP: 12}), None, flash.OPS, flash.KERNELS) == "flash_attention_for_cpu ×12"


# --- the packages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (flash_attn2, "flash_attn is not installed (pip install --no-build-isolation 'flash-attn>=2.8')"),
        (flash_attn3, "flash_attn_interface is not installed (built from the folder hopper/"),
        (flash_attn4, "flash_attn.cute is not installed (pip install --pre flash-attn-4)"),
    ],
)
def test_a_package_that_is_missing_says_how_to_get_it(part: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    for device in ("cpu", "cuda"):
        assert part.unavailable(device).startswith(said)


@pytest.mark.parametrize(("part", "name"), [(flash_attn2, "flash_attn"), (flash_attn4, "flash_attn.cute")])
def test_a_package_that_is_there_needs_cuda(
    part: Any, name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found without importing it: an import could fail on a machine whose torch it was not built for."""
    folder = tmp_path.joinpath(*name.split("."))
    folder.mkdir(parents=True)
    for inside in (tmp_path / "flash_attn", folder):
        (inside / "__init__.py").write_text("raise ImportError('undefined symbol')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert part.unavailable("cpu") == f"{name} runs on CUDA only"
    assert part.unavailable("cuda") is None


def package(tuple_out: bool = False) -> tuple[Any, list[dict[str, Any]]]:
    """A package's function as they have it: (B, N, H, d), fewer key heads allowed, bottom-right causal."""
    seen: list[dict[str, Any]] = []

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float | None, causal: bool) -> Any:
        seen.append({"shapes": (q.shape, k.shape, v.shape), "ptr": q.data_ptr(), "causal": causal})
        scale = softmax_scale or 1 / math.sqrt(q.shape[-1])
        repeat = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q * scale, k)
        if causal:
            hidden = torch.ones(scores.shape[-2:]).triu(1 + k.shape[1] - q.shape[1]).bool()
            scores = scores.masked_fill(hidden, float("-inf"))
        out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return (out, None) if tuple_out else out

    return flash_attn_func, seen


@pytest.mark.parametrize("tuple_out", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_package_is_called_in_its_own_layout(tuple_out: bool, kv_heads: int, scale: float | None) -> None:
    function, seen = package(tuple_out)
    q, k, v = qkv(kv_heads=kv_heads)
    out = adapted("fake", lambda: function)(q, k, v, scale=scale, enable_gqa=kv_heads != 4)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(out, SDPA(q, k, v, scale=scale, enable_gqa=True), rtol=0, atol=1e-12)
    assert seen[0]["shapes"] == ((2, 7, 4, 8), (2, 9, kv_heads, 8), (2, 9, kv_heads, 8))
    assert seen[0]["ptr"] == q.data_ptr(), "no copy"


def test_a_causal_package_is_called_only_where_it_means_the_same() -> None:
    function, seen = package()
    attend = adapted("fake", lambda: function)
    q, k, v = qkv(6, 6)
    torch.testing.assert_close(attend(q, k, v, is_causal=True), SDPA(q, k, v, is_causal=True), rtol=0, atol=1e-12)
    assert seen[0]["causal"]
    with pytest.raises(ValueError, match="fake aligns its causal mask differently"):
        attend(*qkv(4, 9), is_causal=True)
    attend(*qkv(4, 9))


def test_what_a_package_cannot_take_is_refused() -> None:
    function, seen = package()
    attend = adapted("fake", lambda: function)
    with pytest.raises(ValueError, match="fake takes no attention mask; use the back end 'efficient' or 'vanilla'"):
        attend(*qkv(), attn_mask=torch.zeros(7, 9))
    with pytest.raises(ValueError, match=r"without dropout; call eval\(\)"):
        attend(*qkv(), dropout_p=0.1)
    assert seen == []


@pytest.mark.parametrize(
    ("part", "module"),
    [(flash_attn2, "flash_attn"), (flash_attn3, "flash_attn_interface"), (flash_attn4, "flash_attn.cute")],
)
def test_a_package_answers_a_whole_model(part: Any, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, seen = package()
    for i in range(module.count(".") + 1):
        name = ".".join(module.split(".")[: i + 1])
        fake: Any = ModuleType(name)
        fake.flash_attn_func = function if name == module else None
        fake.__path__ = []
        monkeypatch.setitem(sys.modules, name, fake)
    part._function.cache_clear()
    try:
        plain = tiny.FAMILIES["vit"]()
        with torch.inference_mode():
            expected = call(plain.module, plain.inputs).logits
            with attending(part):
                given = call(plain.module, plain.inputs).logits
    finally:
        part._function.cache_clear()
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-10)
    assert len(seen) == tiny.DEPTH
