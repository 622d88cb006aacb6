"""timm's models by name: their sites, protected tokens and rotary embeddings against forwards written out here."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import case, one_thread, pixels, roughen  # noqa: F401
from torch import Tensor
from typer.testing import CliRunner

from repshift_cli.attention import vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark.builder import facts_of
from repshift_cli.cli import app
from repshift_cli.models import timm as family
from repshift_cli.models.base.torchvision import mend
from repshift_cli.models.discovery.blocks import NoSites
from repshift_cli.records import Case, Facts, Subject, UsageError, call, kept, store, tokens_along
from repshift_cli.reduction import repshift
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.registry import resolve_model

mend()
timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

HEADS, WIDTH, BATCH = 4, 64, 3
SMALL = {"embed_dim": WIDTH, "num_heads": HEADS, "depth": 3}
_model = family._model


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """timm's own architectures, narrower and of three blocks."""

    def made(name: str, image_size: int | None, **options: Any) -> Any:
        return _model(name, image_size, **{**SMALL, **options})

    monkeypatch.setattr(family, "_model", made)
    family._whole.cache_clear()
    yield
    family._whole.cache_clear()


def size_of(name: str) -> int:
    """Four patches wide and high."""
    found = re.search(r"patch(\d+)", name)
    return 4 * int(found[1] if found else 16)


def facts(name: str) -> Facts:
    return family.facts.__wrapped__(f"timm:{name}", size_of(name))


def subject(name: str, batch: int = BATCH) -> Subject:
    made = family.build(case(model=f"timm:{name}", image_size=size_of(name), batch=batch))
    roughen(made.module)
    return made


def output(made: Subject, given: Case, attention: Any = vanilla) -> Tensor:
    with torch.inference_mode(), attending(attention), pruned(made, repshift, given):
        return call(made.module, made.inputs)


# --- many architectures -----------------------------------------------------------------------------------------------

PREFIX = {
    "vit_tiny_patch16_224": 1,
    "vit_base_patch32_224": 1,
    "vit_base_patch16_224_miil": 1,
    "vit_medium_patch16_gap_240": 0,
    "vit_small_patch16_36x1_224": 1,
    "vit_small_patch16_18x2_224": 1,
    "vit_base_patch16_xp_224": 1,
    "vit_base_patch14_dinov2": 1,
    "vit_base_patch14_reg4_dinov2": 5,
    "vit_small_patch16_dinov3": 5,
    "vit_base_patch16_clip_224": 1,
    "vit_base_patch16_clip_quickgelu_224": 1,
    "vit_base_patch16_siglip_224": 0,
    "vit_base_patch16_siglip_gap_224": 0,
    "vit_base_patch16_rpn_224": 0,
    "vit_wee_patch16_reg1_gap_256": 1,
    "vit_medium_patch16_reg4_gap_256": 4,
    "vit_betwixt_patch16_rope_reg4_gap_256": 4,
    "vit_small_patch16_rope_224": 1,
    "vit_small_patch16_rope_ape_224": 1,
    "vit_small_patch16_rope_mixed_224": 1,
    "vit_small_patch16_rope_mixed_ape_224": 1,
    "vit_pe_core_tiny_patch16_384": 1,
    "vit_pe_spatial_tiny_patch16_512": 1,
    "deit_tiny_patch16_224": 1,
    "deit_tiny_distilled_patch16_224": 2,
    "deit3_small_patch16_224": 1,
    "flexivit_small": 1,
    "eva_large_patch14_196": 1,
    "eva02_tiny_patch14_224": 1,
    "eva02_base_patch16_clip_224": 1,
    "eva02_enormous_patch14_clip_224": 1,
    "aimv2_large_patch14_224": 0,
    "beit3_base_patch16_224": 1,
}
"""Architecture -> class, distillation and register tokens."""


@pytest.mark.parametrize("name", PREFIX)
def test_an_architecture_is_cut_and_left_as_it_was(name: str) -> None:
    planned, made = facts(name), subject(name)
    assert (planned.prefix, made.prefix, planned.tokens) == (PREFIX[name], PREFIX[name], made.tokens)
    assert (planned.depth, len(made.sites), planned.operations) == (3, 3, made.sites[0].operations)
    with torch.inference_mode(), attending(vanilla):
        untouched = call(made.module, made.inputs)
    given = case(pruning="repshift", keep=1.0, layers=(1, 2), operation=planned.operations[0])
    assert torch.equal(output(made, given), untouched)

    seen: list[int] = []
    handles = [s.block.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape[1])) for s in made.sites]
    shorter = output(made, replace(given, keep=0.5))
    for handle in handles:
        handle.remove()
    assert tuple(seen) == tokens_along(planned, 0.5, (1, 2))
    assert seen[1] == PREFIX[name] + kept(planned.tokens, 0.5)
    assert shorter.shape == untouched.shape
    assert torch.isfinite(shorter).all()
    assert not torch.equal(shorter, untouched)

    assert not any(m._forward_hooks or m._forward_pre_hooks for m in made.module.modules())
    assert torch.equal(output(made, given), untouched)


def test_there_are_enough_of_them() -> None:
    assert len(PREFIX) >= 25


REFUSED = {
    "swin_tiny_patch4_window7_224": "grid",
    "hiera_tiny_224": "need the whole grid",
    "maxvit_nano_rw_256": "grid",
    "pvt_v2_b0": "grid",
    "vgg11": "no convolutional block",
    "samvit_base_patch16_224": "grid",
    "efficientformer_l1": "no repeated block",
    "mixer_s32_224": r"MixerBlock \(they do not run on a part",
    "xcit_nano_12_p16_224": r"XCABlock \(they do not run on a part",
    "convit_tiny": "whole grid",
    "pit_ti_224": "stages or branches",
    "crossvit_tiny_240": "stages or branches",
    "mvitv2_tiny": "tell their tokens' places by themselves",
    "cait_xxs24_224": "compute their attention themselves",
}
"""Architecture -> a piece of the reason."""


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_all_its_tokens_is_refused_with_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "_model", _model)
    with pytest.raises(NoSites, match=REFUSED[name]) as caught:
        facts_of(None, f"timm:{name}", None, None)
    assert caught.value.looked, "`repshift explain` shows what was looked at"
    assert f"timm:{name}" in str(caught.value)


def test_blocks_with_something_between_them_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small_model = family._model

    def pooling(*given: Any, **options: Any) -> Any:
        made = small_model(*given, **options)
        made.blocks[1].register_forward_pre_hook(lambda block, args: (args[0][:, ::2],))
        return made

    monkeypatch.setattr(family, "_model", pooling)
    with pytest.raises(UsageError, match="do not hand all tokens on to each other"):
        facts("vit_tiny_patch16_224")


# --- the blocks, written out ------------------------------------------------------------------------------------------

Parts = tuple[Tensor, Tensor, Tensor]
"""What the branch is added to, the branch, and the block's output."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """(B, N, heads * d) each, to the same; `bias` is (B, heads, N, N)."""
    q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def plain_block(b: Any, x: Tensor, rope: Tensor | None) -> Parts:
    middle = x + b.attn.proj(attend(*b.attn.qkv(b.norm1(x)).chunk(3, -1)))
    update = b.mlp.fc2(torch.nn.functional.gelu(b.mlp.fc1(b.norm2(middle))))
    return middle, update, middle + update


def scaled_block(b: Any, x: Tensor, rope: Tensor | None) -> Parts:
    middle = x + b.ls1.gamma * b.attn.proj(attend(*b.attn.qkv(b.norm1(x)).chunk(3, -1)))
    update = b.ls2.gamma * b.mlp.fc2(torch.nn.functional.gelu(b.mlp.fc1(b.norm2(middle))))
    return middle, update, middle + update


def parallel_block(b: Any, x: Tensor, rope: Tensor | None) -> Parts:
    """One norm and one projection for both branches (ViT-22B, arXiv 2302.05442), with q and k normed per head."""
    y = torch.nn.functional.linear(b.in_norm(x), b.in_proj.weight)
    if b.in_proj.bias is not None:
        y = y + b.in_proj.bias
    inner, q, k, v = y.split(b.in_split, -1)
    q, k = (n(t.unflatten(-1, (HEADS, -1))).flatten(2) for n, t in ((b.q_norm, q), (b.k_norm, k)))
    if b.mlp_bias is not None:
        inner = inner + b.mlp_bias
    update = b.attn_out_proj(attend(q, k, v)) + b.mlp_out_proj(torch.nn.functional.gelu(inner))
    update = update * b.ls.gamma if hasattr(b.ls, "gamma") else update
    return x, x + update, x + update


def double_block(b: Any, x: Tensor, rope: Tensor | None) -> Parts:
    """Two attentions side by side, then two MLPs (arXiv 2203.09795)."""
    middle = x
    for a in b.attns:
        middle = middle + a.ls.gamma * a.attn.proj(attend(*a.attn.qkv(a.norm(x)).chunk(3, -1)))
    out = middle
    for f in b.ffns:
        out = out + f.ls.gamma * f.mlp.fc2(torch.nn.functional.gelu(f.mlp.fc1(f.norm(middle))))
    return x, out, out


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Pairs of channels turned: x (B, n, heads, d), rope (B, n, heads or 1, 2 d) with the sines first."""
    sines, cosines = rope.chunk(2, -1)
    turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    return x * cosines + turned * sines


def eva_block(b: Any, x: Tensor, rope: Tensor | None) -> Parts:
    """EVA-02 (arXiv 2303.11331): keys without bias, rotary embeddings for patches only, SwiGLU."""
    assert rope is not None
    a, m = b.attn, b.mlp
    zero = torch.zeros_like(a.q_bias)
    bias = torch.cat((a.q_bias, zero, a.v_bias))
    q, k, v = (b.norm1(x) @ a.qkv.weight.T + bias).chunk(3, -1)
    q, k = (t.unflatten(-1, (HEADS, -1)) for t in (q, k))
    q, k = (torch.cat((t[:, :1], rotated(t[:, 1:], rope)), 1).flatten(2) for t in (q, k))
    middle = x + a.proj(attend(q, k, v))
    gate, inner = m.fc1(b.norm2(middle)).chunk(2, -1)
    update = m.fc2(torch.nn.functional.silu(gate) * inner)
    return middle, update, middle + update


def mixed_block(b: Any, x: Tensor, rope: Tensor | None) -> Parts:
    """RoPE-ViT (arXiv 2403.13298): LayerScale, a rotation of its own for every head and block."""
    assert rope is not None
    q, k, v = b.attn.qkv(b.norm1(x)).chunk(3, -1)
    q, k = (t.unflatten(-1, (HEADS, -1)) for t in (q, k))
    q, k = (torch.cat((t[:, :1], rotated(t[:, 1:], rope)), 1).flatten(2) for t in (q, k))
    middle = x + b.gamma_1 * b.attn.proj(attend(q, k, v))
    update = b.gamma_2 * b.mlp.fc2(torch.nn.functional.gelu(b.mlp.fc1(b.norm2(middle))))
    return middle, update, middle + update


def beit_block(b: Any, x: Tensor, bias: Tensor | None) -> Parts:
    """BEiT (arXiv 2106.08254): keys without bias, a bias for every pair of places in every block, branches scaled."""
    assert bias is not None
    a = b.attn
    q, k, v = (b.norm1(x) @ a.qkv.weight.T + torch.cat((a.q_bias, torch.zeros_like(a.q_bias), a.v_bias))).chunk(3, -1)
    middle = x + b.gamma_1 * a.proj(attend(q, k, v, bias))
    update = b.gamma_2 * b.mlp.fc2(torch.nn.functional.gelu(b.mlp.fc1(b.norm2(middle))))
    return middle, update, middle + update


def relpos_block(b: Any, x: Tensor, bias: Tensor | None) -> Parts:
    assert bias is not None
    q, k, v = b.attn.qkv(b.norm1(x)).chunk(3, -1)
    q, k = (n(t.unflatten(-1, (HEADS, -1))).flatten(2) for n, t in ((b.attn.q_norm, q), (b.attn.k_norm, k)))
    middle = x + b.ls1(b.attn.proj(attend(q, k, v, bias)))
    update = b.ls2(b.mlp.fc2(torch.nn.functional.gelu(b.mlp.fc1(b.norm2(middle)))))
    return middle, update, middle + update


def embedded(m: Any, images: Tensor) -> Tensor:
    if not hasattr(m, "_pos_embed"):
        x = m.patch_embed(images)
        return x if m.cls_token is None else torch.cat((m.cls_token.expand(len(x), -1, -1), x), 1)
    x = m._pos_embed(m.patch_embed(images))
    return m.norm_pre(x[0] if isinstance(x, tuple) else x)


def token_head(m: Any, x: Tensor) -> Tensor:
    return m.head(m.norm(x)[:, 0])


def mean_head(m: Any, x: Tensor) -> Tensor:
    return m.head(m.fc_norm(x[:, m.num_prefix_tokens :].mean(1)))


def no_rope(m: Any, layer: int) -> None:
    return None


def shared_rope(m: Any, layer: int) -> Tensor:
    return m.rope.get_embed().unsqueeze(1)


def own_rope(m: Any, layer: int) -> Tensor:
    return m.rope.get_embed()[layer - 1].transpose(0, 1)


def library_head(m: Any, x: Tensor) -> Tensor:
    return m.forward_head(m.norm(x))


def beit_bias(m: Any, layer: int) -> Tensor:
    """(1, heads, N, N) from the table of distances, with places of its own for the class token."""
    a = m.blocks[layer - 1].attn
    return a.relative_position_bias_table[a.relative_position_index].permute(2, 0, 1).unsqueeze(0)


def block_bias(m: Any, layer: int) -> Tensor:
    return m.blocks[layer - 1].attn.rel_pos.get_bias()


def shared_bias(m: Any, layer: int) -> Tensor:
    return m.shared_rel_pos.get_bias()


PLAIN: dict[str, tuple[Callable[..., Parts], Callable[..., Tensor], Callable[..., Any], str]] = {
    "vit_tiny_patch16_224": (plain_block, token_head, no_rope, "mlp"),
    "deit3_small_patch16_224": (scaled_block, token_head, no_rope, "mlp"),
    "vit_small_patch14_reg4_dinov2": (scaled_block, token_head, no_rope, "mlp"),
    "eva02_tiny_patch14_224": (eva_block, mean_head, shared_rope, "mlp"),
    "vit_small_patch16_rope_mixed_224": (mixed_block, token_head, own_rope, "mlp"),
    "beit_base_patch16_224": (beit_block, library_head, beit_bias, "mlp"),
    "vit_relpos_small_patch16_224": (relpos_block, library_head, block_bias, "mlp"),
    "vit_relpos_base_patch16_clsgap_224": (relpos_block, library_head, block_bias, "mlp"),
    "vit_srelpos_small_patch16_224": (relpos_block, library_head, shared_bias, "mlp"),
    "vit_base_patch16_xp_224": (parallel_block, token_head, no_rope, "block"),
    "vit_small_patch16_18x2_224": (double_block, token_head, no_rope, "block"),
}
"""Architecture -> its block, its head, its rotary embeddings (N, heads or 1, 2 d) or biases (1, heads, N, N), what is
scored."""


def of_places(table: Tensor | None, places: list[list[int]], prefix: int) -> Tensor | None:
    """Each sample's entries of what belongs to places."""
    if table is None or table.ndim < 4:
        return None if table is None else torch.stack([table[rows] for rows in places])
    all_of = [[*range(prefix), *(prefix + i for i in rows)] for rows in places]
    return torch.stack([table[0][:, rows][:, :, rows] for rows in all_of])


def written_out(name: str, made: Subject, keep: float, layers: tuple[int, ...]) -> Tensor:
    """The whole forward, every sample cut by its own ranking of |F - x| at the end of the blocks named."""
    block, head, rope_of, _ = PLAIN[name]
    m, p = made.module, made.prefix
    x = embedded(m, made.inputs[0])
    places = [list(range(made.tokens)) for _ in x]
    for layer, b in enumerate(m.blocks, start=1):
        own = of_places(rope_of(m, layer), places, p)
        origin, moved, out = block(b, x, own)
        if layer in layers:
            scores = (moved - origin).square().sum(-1).sqrt()[:, p:]
            n = len(places[0])
            stay = n - n * (1000 - round(1000 * keep)) // 1000
            best = [sorted(sorted(range(n), key=lambda i, s=s: -s[i])[:stay]) for s in scores.tolist()]
            out = torch.stack([o[[*range(p), *(p + i for i in rows)]] for o, rows in zip(out, best, strict=True)])
            places = [[was[i] for i in rows] for was, rows in zip(places, best, strict=True)]
        x = out
    return head(m, x)


@pytest.fixture(params=[(name, batch) for name in PLAIN for batch in (BATCH, HEADS)], ids=str)
def exact(request: pytest.FixtureRequest) -> Iterator[tuple[str, Subject]]:
    """In float64; a batch of as many samples as heads is where an embedding could be laid over the wrong one."""
    name, batch = request.param
    made = subject(name, batch)
    made.module.double()
    size = size_of(name)
    made = replace(made, inputs=(pixels(batch, 3, size, size),))
    if not made.module.num_classes:
        made.module.head = torch.nn.Identity()
    yield name, made


def test_the_written_forward_is_the_model(exact: tuple[str, Subject]) -> None:
    name, made = exact
    with torch.no_grad():
        torch.testing.assert_close(call(made.module, made.inputs), written_out(name, made, 1.0, ()), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("keep", "layers"), [(0.7, (1, 2)), (0.5, (2,))])
def test_it_is_pruned_as_written(exact: tuple[str, Subject], keep: float, layers: tuple[int, ...]) -> None:
    name, made = exact
    operation = PLAIN[name][3]
    form = None if operation == "block" else "paper"
    given = case(pruning="repshift", keep=keep, layers=layers, operation=operation, distance="l2", form=form)
    with torch.no_grad():
        expected, uncut = written_out(name, made, keep, layers), written_out(name, made, 1.0, ())
    torch.testing.assert_close(output(made, given), expected, rtol=0, atol=1e-10)
    assert (expected - uncut).abs().max() > 1e-4, "the cut must show in the output"


def test_the_places_of_rotary_embeddings_matter() -> None:
    """Kept tokens with the rotations of others would be seen."""
    made = subject("eva02_tiny_patch14_224")
    assert (made.companions, made.spread) == (("rope",), 1)
    wrong = replace(made, companions=())
    given = case(pruning="repshift", keep=0.5, layers=(1,), operation="mlp")
    with pytest.raises(RuntimeError):
        output(wrong, given)


def test_biases_need_a_back_end_that_takes_them() -> None:
    assert facts("beit_base_patch16_224").mask == "relative position biases"
    assert not facts("beit_base_patch16_224").eager and facts("vit_tiny_patch16_224").eager
    made = subject("beit_base_patch16_224")
    assert made.biased and made.companions == ()
    given = case(pruning="repshift", keep=0.5, layers=(1,), operation="mlp")
    with pytest.raises(RuntimeError):
        output(replace(made, biased=False), given)


# --- from the command line --------------------------------------------------------------------------------------------


def test_a_name_is_resolved_and_an_unknown_one_gets_the_nearest() -> None:
    assert resolve_model("timm:vit_tiny_patch16_224").name == "timm"
    with pytest.raises(UsageError, match=r"no model 'vit_tiny_patch16_22': did you mean .*vit_tiny_patch16_224"):
        facts_of(None, "timm:vit_tiny_patch16_22", None, None)
    with pytest.raises(UsageError, match="repshift models"):
        resolve_model("timm:")


def test_without_timm_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family.importlib.util, "find_spec", lambda name: None)
    family.facts.cache_clear()
    with pytest.raises(UsageError, match=r"pip install --no-deps 'timm>=1.0.31' 'torchvision=="):
        facts_of(None, "timm:vit_tiny_patch16_224", None, None)
    assert family.unavailable("cpu") is not None


def test_attention_goes_through_torch_whatever_timm_is_set_to() -> None:
    timm.layers.set_fused_attn(False)
    try:
        assert facts("vit_tiny_patch16_224").head_dim == WIDTH // HEADS
    finally:
        timm.layers.set_fused_attn(True)


def test_image_sizes() -> None:
    assert family.facts.__wrapped__("timm:vit_tiny_patch16_224").tokens == 196
    assert family.facts.__wrapped__("timm:vit_tiny_patch16_224", 96).tokens == 36
    with pytest.raises(UsageError, match="no multiple of the patch size 16"):
        facts_of(None, "timm:vit_tiny_patch16_224", 100, None)
    with pytest.raises(UsageError, match="--frames does not apply"):
        facts_of(None, "timm:vit_tiny_patch16_224", None, 8)


def test_a_class_that_is_told_no_size_takes_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "_model", _model)
    assert facts_of(None, "timm:resnet18", 96, None).tokens == 24 * 24


def test_weights_come_from_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    name = "timm:deit3_small_patch16_224"
    saved = roughen(family._model(name, 64))
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    made = family.build(case(model=name, image_size=64, weights=str(tmp_path / "model.safetensors")))
    assert made.warnings == ()
    assert all(torch.equal(v, saved.state_dict()[k]) for k, v in made.module.state_dict().items())
    with pytest.raises(UsageError, match="does not fit"):
        family.build(case(model=name, image_size=96, weights=str(tmp_path / "model.safetensors")))


def test_images_are_normalised_as_the_model_says(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (255, 0, 0)).save(tmp_path / "red.png")
    for name, mean, std in [
        ("vit_tiny_patch16_224", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("deit_tiny_patch16_224", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]:
        made = family.build(case(model=f"timm:{name}", image_size=64, batch=1, input=str(tmp_path)))
        expected = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.0), mean, std, strict=True)]
        torch.testing.assert_close(made.inputs[0][0, :, 5, 5], torch.tensor(expected))


@pytest.mark.slow
def test_bench_and_a_refusal_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    family.facts.cache_clear()
    common = ["--device", "cpu", "--rounds", "2", "--keep", "0.5", "--layers", "1"]
    common += ["--operation", "mlp", "--out", "run.json"]
    done = CliRunner().invoke(
        app, ["bench", "--model", "timm:vit_tiny_patch16_224", "--image-size", "64", *common], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    records = store.load(Path("run.json")).records
    assert {(r.status, r.tokens) for r in records} == {("ok", (17,)), ("ok", (17, 9))}
    Path("run.json").unlink()
    monkeypatch.setattr(family, "_model", _model)
    done = CliRunner().invoke(app, ["bench", "--model", "timm:swin_tiny_patch4_window7_224", *common])
    assert done.exit_code == 1
    assert isinstance(done.exception, UsageError)
    assert done.exception.exit_code == 2
    assert "lays its tokens on a grid" in str(done.exception)


def test_profile_of_parallel_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without x' have projections and attention, no MLP that could be told apart."""
    monkeypatch.chdir(tmp_path)
    family.facts.cache_clear()
    common = ["--device", "cpu", "--variant", "flash+repshift", "--keep", "0.5", "--layers", "1"]
    model = ["--model", "timm:vit_small_patch16_18x2_224", "--image-size", "64"]
    done = CliRunner().invoke(app, ["profile", *model, *common], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "failed" not in done.stdout
    assert "projection" in done.stdout


# --- a torchvision built for CUDA beside a torch without it -----------------------------------------------------------

FAKE = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "fails"),
    [
        ("pass", True),
        ("import repshift_cli.models.base.transformers", False),
        (
            "import torch; torch.version.cuda = '13.0'; from repshift_cli.models.base.torchvision import mend; mend()",
            True,
        ),
    ],
)
def test_torchvision_whose_library_cannot_be_loaded(tmp_path: Path, first: str, fails: bool) -> None:
    folder = tmp_path / "torchvision"
    folder.mkdir()
    (folder / "__init__.py").write_text(FAKE)
    (folder / "_C.so").write_bytes(b"no library")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{first}\nimport torchvision\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    if fails:
        assert "operator torchvision::nms does not exist" in done.stderr


# --- every probe ------------------------------------------------------------------------------------------------------

POOLED = ("vit_base_patch16_siglip_224", "vit_so150m_patch16_reg4_map_256", "vit_pe_core_tiny_patch16_384")
"""Models pooled by attention, whose query is a parameter handed to a module."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [*POOLED, "vit_small_patch16_dinov3"])
def test_every_probe_measures_them(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through bench, not the forward alone."""
    monkeypatch.chdir(tmp_path)
    family.facts.cache_clear()
    asked = ["--model", f"timm:{name}", "--image-size", "64", "--variant", "flash,flash+repshift", "--keep", "0.5"]
    common = ["--device", "cpu", "--layers", "1", "--rounds", "1", "--out", "run.json"]
    done = CliRunner().invoke(app, ["bench", *asked, *common], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for record in store.load(Path("run.json")).records:
        found = {m.metric: m for m in record.measurements}
        for metric in ("macs", "operators", "hbm_modelled", "memory_peak_allocated"):
            assert found[metric].samples and found[metric].samples[0] > 0, found[metric].reason
        lacking = {m.reason for m in record.measurements if not m.samples and not m.reference}
        assert lacking <= {
            "random weights: the classes mean nothing, so only KL is shown",
            "no GPU in this run",
            "a CPU has no caching allocator",
            "no vanilla in this run; add it to --variant",
        }
