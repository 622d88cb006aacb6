"""Blocks are found by what they compute or refused with a sentence; weights, images and your own model are checked."""

from __future__ import annotations

import itertools
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli import registry
from repshift_cli.benchmark import builder
from repshift_cli.models import hf, own
from repshift_cli.models.base.transformers import first_line, load_weights, logits, pooled, weights_file
from repshift_cli.models.discovery.blocks import NoSites, find_sites, prefix_tokens
from repshift_cli.models.inputs.images import batches, image_files, load_images, random_pixels
from repshift_cli.records import Case, Subject, UsageError, call, tokens_along
from repshift_cli.reduction import repshift
from repshift_cli.reduction.engine.hooks import pruned

# --- every alias ------------------------------------------------------------------------------------------------------

ALIASES = {
    "vit_t": (12, 197, 1, 3),
    "vit_l": (24, 197, 1, 16),
    "vit_h": (32, 257, 1, 16),
    "deit_s": (12, 197, 1, 6),
    "deit_b_distilled": (12, 198, 2, 12),
    "dinov2_s": (12, 1370, 1, 6),
    "dinov2_l_reg": (24, 1374, 5, 16),
    "clip_b32": (12, 50, 1, 12),
    "clip_l_336": (24, 577, 1, 16),
    "siglip_b": (12, 196, 0, 12),
    "siglip_so400m": (27, 729, 0, 16),
    "umt_b": (12, 2352, 0, 12),
    "umt_l": (24, 2352, 0, 16),
    "videomae_b": (12, 1568, 0, 12),
    "videomae_l": (24, 1568, 0, 16),
    "vivit_b": (12, 3137, 1, 12),
}
"""Depth, tokens with prefix, prefix and heads, from the papers."""


@pytest.mark.parametrize("name", ALIASES)
def test_facts_of_the_aliases(name: str) -> None:
    depth, tokens, prefix, heads = ALIASES[name]
    facts = builder.facts_of(None, name, None, None)
    assert (facts.depth, facts.tokens + facts.prefix, facts.prefix) == (depth, tokens, prefix)
    assert facts.weights == "random"
    width = {"siglip_so400m": 1152}.get(name) or registry.resolve_model(name).constants["ALIASES"][name]["width"]
    assert facts.head_dim == width // heads


def test_every_alias_has_facts_that_its_family_can_build() -> None:
    for name, part in registry.aliases().items():
        if part.name == "timesformer":  # always refused
            continue
        facts = registry.load(part).facts(name, None, None, None)
        assert facts.depth >= (4 if facts.removals else 6), name
        assert facts.tokens > 40, name
        assert facts.head_dim in (32, 64, 72, 80, 128) if facts.attention else facts.head_dim is None, name


def test_paper_tokens() -> None:
    assert tokens_along(builder.facts_of(None, "deit_b", None, None), 0.8, (1, 4, 7)) == (197, 158, 127, 102)
    assert tokens_along(builder.facts_of(None, "umt_b", None, None), 0.8, (1, 2, 3)) == (2352, 1882, 1506, 1205)


@pytest.mark.parametrize(
    ("name", "size", "frames", "tokens"),
    [
        ("vit_b", 384, None, 576),
        ("dinov2_s", 224, None, 256),
        ("umt_b", None, 8, 1568),
        ("umt_b", 112, 2, 98),
        ("videomae_b", None, 8, 784),
        ("vivit_b", 112, 4, 98),
    ],
)
def test_facts_follow_image_size_and_frames(name: str, size: int | None, frames: int | None, tokens: int) -> None:
    facts = builder.facts_of(None, name, size, frames)
    assert facts.tokens == tokens
    assert facts.image_size == (size or 224)


@pytest.mark.parametrize(
    ("name", "size", "frames", "said"),
    [
        ("vit_b", 225, None, "no multiple of the patch size 16"),
        ("vivit_b", 100, None, "no multiple of the patch size 16"),
        ("vit_b", None, 4, "--frames does not apply"),
        ("videomae_b", None, 9, "9 frames are no multiple of the tubelet's 2"),
        ("vivit_b", None, 1, "1 frames are no multiple of the tubelet's 2"),
    ],
)
def test_impossible_sizes_are_refused(name: str, size: int | None, frames: int | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        builder.facts_of(None, name, size, frames)


VIDEO = {"umt_b": 2, "videomae_b": 4, "vivit_b": 4}


@pytest.mark.parametrize("name", ["vit_t", "deit_t_distilled", "dinov2_s_reg", "clip_b32", "siglip_b", *VIDEO])
def test_a_built_alias_is_what_its_facts_say(name: str, shrunk: Callable[[str], Any]) -> None:
    """The real builder at a small depth; every family once."""
    family = shrunk(name)
    size, frames = (56 if name == "dinov2_s_reg" else 32), VIDEO.get(name)
    facts = family.facts(name, size, frames, None)
    subject: Subject = family.build(case(model=name, image_size=size, frames=frames, batch=2))
    assert len(subject.sites) == facts.depth == 2
    assert (subject.tokens, subject.prefix) == (facts.tokens, facts.prefix)
    assert not subject.module.training
    assert subject.units == ("video" if frames else "img")
    assert subject.inputs["pixel_values"].std() == pytest.approx(1, abs=0.1), "never zeros"
    assert "random weights" in subject.warnings[0]
    with torch.inference_mode():
        output = call(subject.module, subject.inputs)
    assert subject.pooled(output).shape[0] == 2
    assert (subject.logits(output) is not None) == (name in ("vit_t", "deit_t_distilled", "videomae_b", "vivit_b"))
    again: Subject = family.build(case(model=name, image_size=size, frames=frames, batch=2))
    other: Subject = family.build(case(model=name, image_size=size, frames=frames, batch=2, seed=1))
    for s, same in ((again, True), (other, False)):
        assert torch.equal(subject.inputs["pixel_values"], s.inputs["pixel_values"]) == same
        pairs = zip(subject.module.parameters(), s.module.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same


@pytest.fixture
def shrunk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Gives the family of an alias, which has two blocks of width 64 for the time being."""
    families = []

    def shrink(name: str) -> Any:
        family = registry.load(registry.resolve_model(name))
        sizes = {**family.ALIASES[name], "width": 64, "heads": 4, "depth": 2, "inner": 128}
        monkeypatch.setitem(family.ALIASES, name, sizes)
        if name.startswith("deit") and name.endswith("distilled"):  # whose depth is no part of the alias
            monkeypatch.setattr(transformers.DeiTConfig, "__init__", shallow(transformers.DeiTConfig.__init__))
        family.facts.cache_clear()
        families.append(family)
        return family

    import transformers

    yield shrink
    for family in families:
        family.facts.cache_clear()


def shallow(plain: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **{**kwargs, "num_hidden_layers": 2})

    return init


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_model_comes_in_the_dtype_asked_for(dtype: str, shrunk: Callable[[str], Any]) -> None:
    family = shrunk("umt_b")
    subject = family.build(case(model="umt_b", image_size=32, frames=2, dtype=dtype, batch=1))
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {p.dtype for p in subject.module.parameters()} == {expected}
    assert subject.inputs["pixel_values"].dtype == expected
    assert subject.module.embeddings.position_embeddings.dtype == expected


# --- blocks and branches ----------------------------------------------------------------------------------------------

BRANCHES: dict[str, tuple[str, str, str]] = {
    "vit": ("attention", "layernorm_after", "mlp"),
    "deit_distilled": ("attention", "layernorm_after", "mlp"),
    "dinov2": ("layer_scale1", "norm2", "layer_scale2"),
    "dinov2_registers": ("layer_scale1", "norm2", "layer_scale2"),
    "clip": ("self_attn", "layer_norm2", "mlp"),
    "siglip": ("self_attn", "layer_norm2", "mlp"),
    "videomae": ("attention", "layernorm_after", "output.dropout"),
    "vivit": ("attention", "layernorm_after", "mlp"),
    "plain_torch": ("mix", "second", "feed"),
    "torch_encoder": ("dropout1", "norm2", "dropout2"),
    "dinov3": ("layer_scale1", "norm2", "layer_scale2"),
    "post_norm": ("dropout1", "linear1", "dropout2"),
    "post_norm_padded": ("dropout1", "linear1", "dropout2"),
}


@pytest.mark.parametrize("family", BRANCHES)
def test_blocks_and_branches_are_found(family: str) -> None:
    plain = FAMILIES[family]()
    found = find_sites(plain.module, plain.inputs)
    sites, entering = found.sites, found.entering
    assert len(sites) == tiny.DEPTH
    assert entering == plain.tokens + plain.prefix
    assert prefix_tokens(plain.module) == plain.prefix
    names = {m: name for name, m in plain.module.named_modules()}
    stems = [names[site.block] for site in sites]
    assert [stem.rsplit(".", 1)[-1] for stem in stems] == ["0", "1", "2"]
    for site, stem in zip(sites, stems, strict=True):
        found = tuple(names[m].removeprefix(f"{stem}.") for m in (site.attention, site.middle, site.mlp))
        assert branch_alike(plain, found, BRANCHES[family]), found


def branch_alike(plain: tiny.Plain, found: tuple[str, ...], expected: tuple[str, ...]) -> bool:
    """The same module, or the last one inside it, whose output is the same."""
    return all(f == e or f.startswith(f"{e}.") for f, e in zip(found, expected, strict=True))


def test_finding_leaves_no_hooks_and_no_trace() -> None:
    plain = FAMILIES["vit"]()
    with torch.inference_mode():
        before = plain.compared(call(plain.module, plain.inputs))
    find_sites(plain.module, plain.inputs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.module.modules())
    with torch.inference_mode():
        assert torch.equal(before, plain.compared(call(plain.module, plain.inputs)))


def test_only_the_first_block_runs() -> None:
    plain = FAMILIES["plain_torch"]()
    ran: list[int] = []
    for i, block in enumerate(plain.module.blocks):
        block.register_forward_pre_hook(lambda m, args, i=i: ran.append(i))
    find_sites(plain.module, plain.inputs)
    assert set(ran) == {0}


class PostNorm(tiny.PreNorm):
    """x' = LN(x + A(x)), x'' = LN(x' + M(x'))."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + self.mix(x))
        return self.second(x + self.feed(x))


class Parallel(tiny.PreNorm):
    """x'' = x + A(LN(x)) + M(LN(x)): there is no x'."""

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        return x + self.mix(normed) + self.feed(normed)


class Scaled(tiny.PreNorm):
    """The branches are scaled by plain parameters, so that no module puts out what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((tiny.WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.mix(self.first(x))
        return x + self.gamma * self.feed(self.second(x))


class NeedsGrid(tiny.PreNorm):
    """Attention within the rows of a grid of 3 x 4 tokens, as in windows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Rows(self.mix)


class Rows(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        rows = self.inner(x[:, 1:].unflatten(1, (3, 4)).flatten(0, 1))
        return torch.cat((x[:, :1], rows.unflatten(0, (-1, 3)).flatten(1, 2)), dim=1)


class Positional(tiny.PreNorm):
    """Adds something for every one of 13 tokens inside the attention branch."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(13, tiny.WIDTH))
        self.mix = Biased(self.mix, self.bias)


class Biased(nn.Module):
    def __init__(self, inner: nn.Module, bias: nn.Parameter) -> None:
        super().__init__()
        self.inner, self.bias = inner, bias

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + self.bias)


class Summed(Parallel):
    """Parallel branches whose sum passes one module, as if it were the only branch."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        normed = self.first(x)
        return x + self.drop(self.mix(normed) + self.feed(normed))


@pytest.mark.parametrize("make", [Parallel, Summed])
def test_parallel_branches_are_told_apart_by_which_mixes(make: type[nn.Module]) -> None:
    model = tiny.roughen(tiny.PlainTransformer(make))
    for undivided in (True, False):
        found = find_sites(model, (torch.randn(2, 12, tiny.WIDTH),), undivided=undivided)
        assert {site.operations for site in found.sites} == {("mlp", "attention", "block")}
        assert all(site.attention is site.block.mix and site.mlp is site.block.feed for site in found.sites)


@pytest.mark.parametrize("make", [Scaled])
def test_of_blocks_whose_branches_cannot_be_told_apart_the_whole_is_a_site(make: type[nn.Module]) -> None:
    model = tiny.roughen(tiny.PlainTransformer(make))
    inputs = (torch.randn(2, 12, tiny.WIDTH),)
    found = find_sites(model, inputs, undivided=True)
    assert [site.block for site in found.sites] == list(model.blocks)  # type: ignore[arg-type]
    assert {site.operations for site in found.sites} == {("block",)}
    with pytest.raises(NoSites, match=rf"no repeated block .* looked at {make.__name__}"):
        find_sites(model, inputs)


class Hidden(Scaled):
    """Scaled so far down that the block's output hardly shows what the branches do."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.gamma, 1e-5)


class HiddenPlaces(Hidden):
    """As hidden, and its attention counts its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Counting(self.mix)


class Counting(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * torch.linspace(0.5, 1.5, x.shape[1]).unsqueeze(-1))


def test_what_a_small_scale_hides_is_looked_for_inside() -> None:
    inputs = (torch.randn(2, 12, tiny.WIDTH),)
    assert len(find_sites(tiny.PlainTransformer(Hidden), inputs, undivided=True).sites) == tiny.DEPTH
    with pytest.raises(NoSites, match=r"looked at HiddenPlaces \(they tell their tokens' places by themselves"):
        find_sites(tiny.PlainTransformer(HiddenPlaces), inputs, undivided=True)


class Alone(Parallel):
    """Each token on its own: nothing is mixed."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.feed(self.first(x)) + self.feed(self.second(x))


class Neighbours(Parallel):
    """Each token with the one before it: order matters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.roll(1, 1)


class OneToken(Parallel):
    """Class attention: only the first token is changed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((super().forward(x)[:, :1], x[:, 1:]), dim=1)


@pytest.mark.parametrize("make", [Alone, Neighbours, OneToken])
def test_blocks_that_compute_something_else_are_refused(make: type[nn.Module]) -> None:
    model = tiny.roughen(tiny.PlainTransformer(make))
    with pytest.raises(NoSites, match=rf"no repeated block .* looked at {make.__name__} \(they "):
        find_sites(model, (torch.randn(2, 12, tiny.WIDTH),), undivided=True)


def test_parallel_towers_are_no_blocks_of_one_another() -> None:
    class Towers(tiny.PlainTransformer):
        def forward(self, tokens: Tensor) -> Tensor:
            return sum(block(tokens).mean(1) for block in self.blocks)

    with pytest.raises(NoSites, match=r"looked at Parallel \(they do not hand all tokens on"):
        find_sites(tiny.roughen(Towers(Parallel)), (torch.randn(2, 12, tiny.WIDTH),), undivided=True)


@pytest.mark.parametrize("make", [NeedsGrid, Positional])
def test_blocks_that_need_all_their_tokens_are_refused(make: type[nn.Module]) -> None:
    model = tiny.roughen(tiny.PlainTransformer(make))
    with pytest.raises(NoSites, match=rf"\({make.__name__}\) do not run on a part of their tokens"):
        find_sites(model, (torch.randn(2, 12, tiny.WIDTH),))


def test_a_post_norm_block_is_understood() -> None:
    model = tiny.roughen(tiny.PlainTransformer(PostNorm))
    site = find_sites(model, (torch.randn(2, 12, tiny.WIDTH),)).sites[0]
    block = model.blocks[0]  # type: ignore[union-attr,index]
    assert (site.attention, site.middle, site.mlp) == (block.mix, block.feed[0], block.feed)


def test_torchs_post_norm_encoder_is_understood() -> None:
    model = tiny.roughen(tiny.Encoder(norm_first=False))
    site = find_sites(model, (torch.randn(2, 12, tiny.WIDTH),)).sites[0]
    layer = model.encoder.layers[0]  # type: ignore[union-attr,index]
    assert (site.attention, site.middle, site.mlp) == (layer.dropout1, layer.linear1, layer.dropout2)


def test_a_plain_mlp_is_refused() -> None:
    mlp = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)))
    with pytest.raises(NoSites, match="Sequential has no repeated block"):
        find_sites(mlp, (torch.randn(2, 8),))
    with pytest.raises(NoSites, match=r"\(batch, tokens, channels\)"):
        find_sites(nn.Linear(8, 8), (torch.randn(2, 8),))


class Grid(nn.Module):
    """A block on (B, H, W, C), as in timm's Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix, self.norm2 = nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.feed = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + self.feed(self.norm2(x))


def test_blocks_on_a_grid_are_refused() -> None:
    with pytest.raises(NoSites):
        find_sites(nn.Sequential(Grid(), Grid()), (torch.randn(2, 4, 4, 8),))


@pytest.mark.parametrize("name", ["Swin", "Beit"])
def test_families_that_need_their_grid_are_refused(name: str) -> None:
    """Swin's windows, and biases by the distance of two patches."""
    import transformers

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    swin = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 4}
    own_sizes = swin if name == "Swin" else {**small, "patch_size": 8, "use_relative_position_bias": True}
    config = getattr(transformers, f"{name}Config")(image_size=32, **own_sizes)
    model = tiny.roughen(getattr(transformers, f"{name}Model")(config))
    with pytest.raises(NoSites, match=f"{name}(Model|Layer)"):
        find_sites(model, {"pixel_values": torch.randn(1, 3, 32, 32)})


def test_the_biggest_family_of_blocks_is_taken() -> None:
    """A side tower of smaller blocks, registered first, does not hide the trunk."""

    class Two(tiny.PlainTransformer):
        def __init__(self) -> None:
            super().__init__()
            trunk = self.blocks
            del self.blocks
            self.side = nn.ModuleList(tiny.PreNorm() for _ in range(2))
            self.blocks = trunk

        def forward(self, tokens: Tensor) -> Tensor:
            for block in self.side:
                tokens = block(tokens)
            return super().forward(tokens)

    found = find_sites(tiny.roughen(Two()), (torch.randn(2, 12, tiny.WIDTH),))
    sites, entering = found.sites, found.entering
    assert (len(sites), entering) == (tiny.DEPTH, 13)


def test_an_error_of_the_model_itself_comes_through() -> None:
    plain = FAMILIES["plain_torch"]()
    with pytest.raises(RuntimeError):
        find_sites(plain.module, (torch.randn(2, 12, 5).double(),))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.module.modules())


@pytest.mark.parametrize(
    ("shapes", "prefix"),
    [
        ({}, 0),
        ({"cls_token": (1, 1, 4)}, 1),
        ({"class_embedding": (4,)}, 1),
        ({"cls_token": (1, 1, 4), "dist_token": (1, 1, 4)}, 2),
        ({"cls_token": (1, 1, 4), "reg_token": (1, 4, 4)}, 5),
        ({"register_tokens": (1, 3, 4), "mask_token": (1, 1, 4)}, 3),
    ],
)
def test_prefix_tokens_are_found_as_parameters(shapes: dict[str, tuple[int, ...]], prefix: int) -> None:
    outer, inner = nn.Module(), nn.Module()
    outer.embeddings = inner
    for name, shape in shapes.items():
        inner.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    assert prefix_tokens(outer) == prefix
    outer.num_prefix_tokens = 7
    assert prefix_tokens(outer) == 7


# --- your own model ---------------------------------------------------------------------------------------------------

OWN = """
import torch
import tiny

def model():
    return tiny.roughen(tiny.PlainTransformer()), (torch.randn(4, 12, tiny.WIDTH),)

def keywords():
    return tiny.PlainTransformer().train(), {"tokens": torch.randn(2, 9, tiny.WIDTH)}

class Words(tiny.PlainTransformer):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(50, tiny.WIDTH)

    def forward(self, scale, ids, mask=None):
        assert mask is None or mask.dtype == torch.bool
        return super().forward(self.words(ids) * scale)

def words():
    inputs = {"scale": torch.tensor(2.0), "ids": torch.randint(0, 50, (3, 12)), "mask": torch.ones(3, 12).bool()}
    return Words(), inputs

def not_a_tuple():
    return tiny.PlainTransformer()

def not_a_module():
    return "model", (torch.zeros(1),)

def no_tensors():
    return tiny.PlainTransformer(), {"tokens": [1, 2]}

def one_tensor():
    return tiny.PlainTransformer(), torch.randn(4, 12, tiny.WIDTH)

def only_numbers():
    return tiny.PlainTransformer(), {"tokens": torch.tensor(1.0)}

def breaks():
    raise ValueError("no such file\\nmore")

def wrong_inputs():
    return tiny.PlainTransformer(), (torch.randn(4, 12, 5),)

def no_blocks():
    return torch.nn.Linear(4, 4), (torch.randn(2, 4),)

NUMBER = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Makes the name of a function in a fresh module that lies in the current folder."""
    name = "own_model_under_test"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / "broken_under_test.py").write_text("def f(:\n")
    (tmp_path / "needy_under_test.py").write_text("import no_such_package_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    own._made.cache_clear()
    yield lambda function: f"{name}:{function}"
    own._made.cache_clear()
    for module in (name, "broken_under_test", "needy_under_test"):
        sys.modules.pop(module, None)


def own_case(name: str, **changes: Any) -> Case:
    return case(model=name, input="own", weights="own", **changes)


def test_own_model_with_a_tuple(own_module: Callable[[str], str]) -> None:
    facts = own.facts(own_module("model"))
    assert (facts.depth, facts.tokens, facts.prefix, facts.batch, facts.weights) == (tiny.DEPTH, 12, 1, 4, "own")
    subject = own.build(own_case(own_module("model"), batch=4))
    assert (len(subject.sites), subject.tokens, subject.prefix, subject.units) == (tiny.DEPTH, 12, 1, "sample")
    with torch.inference_mode(), pruned(subject, repshift, own_case("x", keep=0.5, layers=(1,))):
        output = call(subject.module, subject.inputs)
    assert subject.logits(output).shape == (4, 5)
    assert subject.pooled(output).shape == (4, 5)


def test_own_model_with_keywords_is_set_to_eval(own_module: Callable[[str], str]) -> None:
    assert own.facts(own_module("keywords")).batch == 2
    subject = own.build(own_case(own_module("keywords"), dtype="bf16"))
    assert not subject.module.training
    assert subject.inputs["tokens"].dtype == torch.bfloat16
    assert call(subject.module, subject.inputs).dtype == torch.bfloat16


def test_whole_numbers_stay_whole_numbers(own_module: Callable[[str], str]) -> None:
    assert own.facts(own_module("words")).batch == 3, "a scalar among the inputs has no batch"
    subject = own.build(own_case(own_module("words"), dtype="bf16"))
    assert {name: t.dtype for name, t in subject.inputs.items()} == {
        "scale": torch.bfloat16,
        "ids": torch.int64,
        "mask": torch.bool,
    }
    assert call(subject.module, subject.inputs).shape == (3, 5)


def test_a_tensor_alone_is_the_only_input(own_module: Callable[[str], str]) -> None:
    subject = own.build(own_case(own_module("one_tensor"), batch=2))
    assert isinstance(subject.inputs, tuple) and subject.inputs[0].shape == (2, 12, tiny.WIDTH)


def test_own_model_is_made_once_for_planning_and_building(own_module: Callable[[str], str]) -> None:
    name = own_module("model")
    own.facts(name)
    module = sys.modules["own_model_under_test"]
    calls: list[int] = []
    made, module.model = module.model, lambda: calls.append(1) or made()  # type: ignore[func-returns-value]
    own.build(own_case(name, batch=4))
    assert calls == []


def test_a_narrow_dtype_does_not_spoil_the_next_one(own_module: Callable[[str], str]) -> None:
    """bf16 first, then fp32: the fp32 weights are the user's, not what bf16 left of them."""
    name = own_module("model")
    own.build(own_case(name, dtype="bf16", batch=4))
    weights = next(own.build(own_case(name, dtype="fp32", batch=4)).module.blocks[0].mix.qkv.parameters())
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("not_a_tuple", r"must return \(module, inputs\)"),
        ("not_a_module", r"must return \(module, inputs\)"),
        ("no_tensors", "must return inputs as a tensor, a dict of keyword tensors or a tuple"),
        ("only_numbers", "batch"),
        ("breaks", r"breaks\(\) failed: ValueError: no such file$"),
        ("NUMBER", "failed: TypeError"),
        ("nothing", "cannot import own_model_under_test:nothing"),
        ("no_blocks", "Linear has no repeated block"),
        ("wrong_inputs", "cannot be built or run"),
    ],
)
def test_own_model_done_wrong(own_module: Callable[[str], str], function: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        builder.facts_of(None, own_module(function), None, None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_anywhere:f", "cannot import no_such_module_anywhere:f: No module named"),
        ("needy_under_test:f", "No module named 'no_such_package_anywhere'"),
        ("broken_under_test:f", "invalid syntax"),
    ],
)
def test_own_module_that_cannot_be_imported(own_module: Callable[[str], str], name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        builder.facts_of(None, name, None, None)


@pytest.mark.parametrize("option", [{"image_size": 32}, {"frames": 4}, {"weights": "w.safetensors"}])
def test_options_that_do_not_apply_to_an_own_model(own_module: Callable[[str], str], option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="does not apply"):
        own.facts(own_module("model"), **option)


def test_data_does_not_apply_to_an_own_model(own_module: Callable[[str], str]) -> None:
    with pytest.raises(UsageError, match=r"--data gives .* pictures, and its inputs hold no pixels"):
        own.build(case(model=own_module("model"), input="photos", weights="own"))


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pt", "w.pth", "w.ckpt", "w.pkl"])
def test_a_pickle_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(pickle.dumps({}))
    for place in (file, tmp_path):
        with pytest.raises(UsageError, match=rf"{name} is a pickle, and loading one can run any code"):
            weights_file(str(place))


def test_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no model\.safetensors in"):
        weights_file(str(tmp_path))
    with pytest.raises(UsageError, match="no such weights"):
        weights_file(str(tmp_path / "w.safetensors"))


def test_safetensors_go_before_a_pickle_beside_them(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert weights_file(str(tmp_path)) == tmp_path / "model.safetensors"


def test_weights_are_loaded_or_refused(tmp_path: Path) -> None:
    module = tiny.roughen(nn.Linear(4, 3), seed=1)
    good, shape, name, torn = (tmp_path / f"{n}.safetensors" for n in ("good", "shape", "name", "torn"))
    save_file(dict(module.state_dict()), good)
    save_file({"weight": torch.zeros(4, 4), "bias": torch.zeros(3)}, shape)
    save_file({"weight": torch.zeros(3, 4), "bias": torch.zeros(3), "gamma": torch.zeros(3)}, name)
    torn.write_bytes(good.read_bytes()[:40])
    other = nn.Linear(4, 3)
    load_weights(other, str(good))
    assert torch.equal(other.weight, module.weight)
    for file, said in ((shape, "size mismatch for weight"), (name, "gamma"), (torn, "does not fit Linear")):
        with pytest.raises(UsageError, match=said):
            load_weights(other, str(file))


def test_weights_for_an_alias(tmp_path: Path, shrunk: Callable[[str], Any]) -> None:
    family = shrunk("vit_t")
    first = family.build(case(model="vit_t", image_size=32, seed=5)).module
    save_file({k: v.contiguous() for k, v in first.state_dict().items()}, tmp_path / "model.safetensors")
    facts = family.facts("vit_t", 32, None, str(tmp_path))
    assert facts.weights == str(tmp_path)
    subject = family.build(case(model="vit_t", image_size=32, weights=str(tmp_path)))
    assert torch.equal(subject.module.classifier.weight, first.classifier.weight)
    assert subject.warnings == ()


# --- checkpoints ------------------------------------------------------------------------------------------------------


def saved(family: str, folder: Path) -> tiny.Plain:
    plain = FAMILIES[family]()
    plain.module.float().save_pretrained(folder)
    return plain


def hf_case(folder: Path, **changes: Any) -> Case:
    return case(**{"model": f"hf:{folder}", "weights": str(folder), **changes})


@pytest.mark.parametrize(
    "family", ["vit", "deit_distilled", "dinov2", "dinov2_registers", "clip", "siglip", "videomae", "vivit"]
)
def test_a_checkpoint_folder_is_the_model_that_was_saved(family: str, tmp_path: Path) -> None:
    plain = saved(family, tmp_path)
    facts = hf.facts(f"hf:{tmp_path}")
    assert (facts.depth, facts.tokens, facts.prefix) == (tiny.DEPTH, plain.tokens, plain.prefix)
    assert facts.weights == str(tmp_path)
    subject = hf.build(hf_case(tmp_path))
    assert list(subject.inputs) == ["pixel_values"], "nothing is interpolated at the checkpoint's own size"
    assert (subject.tokens, subject.prefix) == (plain.tokens, plain.prefix)
    assert subject.warnings == ()
    with torch.inference_mode():
        mine = plain.compared(call(subject.module, subject.inputs))
        theirs = plain.compared(plain.module(**subject.inputs))
    assert torch.equal(mine, theirs)


def test_the_vision_tower_of_a_whole_clip(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig(vision_config={**tiny.SIZES}, text_config={**tiny.SIZES, "vocab_size": 50, "eos_token_id": 2})
    whole: Any = tiny.roughen(CLIPModel(config))
    whole.save_pretrained(tmp_path)
    assert hf.facts(f"hf:{tmp_path}").depth == tiny.DEPTH
    subject = hf.build(hf_case(tmp_path))
    assert type(subject.module).__name__ == "CLIPVisionModel"
    with torch.inference_mode():
        mine = call(subject.module, subject.inputs).pooler_output
        theirs = whole.vision_model(**subject.inputs).pooler_output
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("family", ["vit", "dinov2", "clip", "siglip"])
def test_another_image_size_interpolates_the_positions(family: str, tmp_path: Path) -> None:
    plain = saved(family, tmp_path)
    assert hf.facts(f"hf:{tmp_path}", image_size=48).tokens == 36
    subject = hf.build(hf_case(tmp_path, image_size=48))
    assert subject.tokens == 36
    assert subject.inputs["pixel_values"].shape == (tiny.BATCH, 3, 48, 48)
    extra = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        mine = plain.compared(call(subject.module, subject.inputs))
        theirs = plain.compared(plain.module(pixel_values=subject.inputs["pixel_values"], **extra))
    assert torch.equal(mine, theirs)


def test_a_checkpoint_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="is a pickle"):
        hf.facts(f"hf:{tmp_path}")


def test_a_checkpoint_in_several_files(tmp_path: Path) -> None:
    plain = FAMILIES["vit"]()
    plain.module.float().save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert hf.facts(f"hf:{tmp_path}").depth == tiny.DEPTH
    subject = hf.build(hf_case(tmp_path))
    assert torch.equal(subject.module.classifier.weight, plain.module.classifier.weight)


def test_a_checkpoint_without_some_weights_says_so(tmp_path: Path) -> None:
    """transformers fills what is missing with random numbers."""
    saved("vit", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = [name for name in weights if "classifier" in name]
    save_file({n: t for n, t in weights.items() if n not in gone}, tmp_path / "model.safetensors", {"format": "pt"})
    subject = hf.build(hf_case(tmp_path))
    assert len(subject.warnings) == 1
    assert "classifier.weight" in subject.warnings[0]
    assert "random" in subject.warnings[0]


def test_a_checkpoint_that_does_not_fit_its_configuration(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(UsageError, match="cannot load"):
        hf.build(hf_case(tmp_path))


@pytest.mark.parametrize("content", [None, "{", '{"model_type": "no_such_model"}', '{"model_type": "vit"}'])
def test_a_folder_that_is_no_checkpoint(content: str | None, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UsageError, match=r"no checkpoint|names no architecture"):
        hf.facts(f"hf:{tmp_path}")


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hf.hub_answers.cache_clear()
    with pytest.raises(UsageError, match=r"the hub does not answer within 4 s; copy the checkpoint here"):
        hf.facts("hf:somebody/something")
    hf.hub_answers.cache_clear()


def test_a_language_model_is_refused(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no plain vision transformer: its configuration has no whole image_size"):
        hf.facts(f"hf:{tmp_path}")


def test_an_own_preprocessor_normalises_the_photos(tmp_path: Path) -> None:
    saved("vit", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.25, 0.0], "image_std": [0.5, 0.5, 2.0]})
    )
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 40), (255, 0, 51)).save(photo)
    pixels = hf.build(hf_case(tmp_path, input=str(photo), batch=1)).inputs["pixel_values"]
    for channel, value in enumerate((1.0, -0.5, 0.1)):
        torch.testing.assert_close(pixels[0, channel], torch.full((32, 32), value))


def test_photos_do_not_go_into_a_video_model(tmp_path: Path) -> None:
    saved("videomae", tmp_path)
    Image.new("RGB", (40, 40)).save(tmp_path / "photo.png")
    with pytest.raises(UsageError, match=r"takes video, and .*photo\.png is an image"):
        hf.build(hf_case(tmp_path, input=str(tmp_path / "photo.png")))
    with pytest.raises(UsageError, match="takes video; no clips in"):
        hf.build(hf_case(tmp_path, input=str(tmp_path)))


def test_a_video_checkpoint_keeps_its_size(tmp_path: Path) -> None:
    saved("vivit", tmp_path)
    assert hf.facts(f"hf:{tmp_path}", 32).tokens == 48
    with pytest.raises(UsageError, match="takes video of 32 pixels only; leave out --image-size 64"):
        hf.facts(f"hf:{tmp_path}", 64)


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("RGB", (200, 100, 50), (200, 100, 50)),
        ("L", 128, (128, 128, 128)),
        ("LA", (128, 255), (128, 128, 128)),
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("P", 3, None),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_kind_of_image_becomes_rgb(mode: str, colour: Any, rgb: tuple[int, ...] | None, tmp_path: Path) -> None:
    file = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    Image.new(mode, (50, 30), colour).save(file)
    pixels = load_images(str(file), 16, (0, 0, 0), (1, 1, 1))
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.dtype == torch.float32
    if rgb is not None:
        expected = torch.tensor(rgb).view(1, 3, 1, 1).expand(1, 3, 16, 16) / 255
        torch.testing.assert_close(pixels, expected)


def test_images_are_cut_in_the_middle_and_normalised(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = load_images(str(tmp_path), 20)
    torch.testing.assert_close(
        pixels[0, :, 10, 10], (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    )
    assert (pixels == pixels[:, :, :1, :1]).all(), "only the white middle is left"


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    for i, name in enumerate(["b.png", "a.JPG", "c.webp"]):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert [f.name for f in image_files(str(tmp_path))] == ["a.JPG", "b.png", "c.webp"]
    assert load_images(str(tmp_path), 8).shape == (3, 3, 8, 8)


def test_images_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such image or folder"):
        image_files(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no images in"):
        image_files(str(tmp_path))
    torn, text = tmp_path / "torn.png", tmp_path / "text.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(torn)
    torn.write_bytes(torn.read_bytes()[:5000])
    text.write_text("no image")
    for file in (torn, text):
        with pytest.raises(UsageError, match=rf"cannot read the image .*{file.name}"):
            load_images(str(file), 16)


@pytest.mark.parametrize(
    ("images", "size", "rows"),
    [(5, 2, [[0, 1], [2, 3], [4, 0]]), (4, 2, [[0, 1], [2, 3]]), (2, 5, [[0, 1, 0, 1, 0]]), (3, 3, [[0, 1, 2]])],
)
def test_batches_are_full(images: int, size: int, rows: list[list[int]]) -> None:
    pixels = torch.arange(images).view(-1, 1, 1, 1).expand(images, 3, 2, 2)
    assert [b[:, 0, 0, 0].tolist() for b in batches(pixels, size)] == rows


def test_real_input_gives_every_image_to_fidelity(tmp_path: Path, shrunk: Callable[[str], Any]) -> None:
    family = shrunk("vit_t")
    for i in range(5):
        Image.new("RGB", (40, 40), (50 * i, 0, 0)).save(tmp_path / f"{i}.png")
    subject = family.build(case(model="vit_t", image_size=32, batch=2, input=str(tmp_path)))
    assert [e["pixel_values"].shape for e in subject.evaluation] == [(2, 3, 32, 32)] * 3
    assert subject.evaluation[0] is subject.inputs


def test_random_pixels_are_normal_and_follow_the_seed() -> None:
    a, b, c = (random_pixels((4, 3, 64, 64), seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.mean().item() == pytest.approx(0, abs=0.02)
    assert a.std().item() == pytest.approx(1, abs=0.02)


# --- outputs ----------------------------------------------------------------------------------------------------------


class Output:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


def test_outputs_are_read() -> None:
    hidden, classes = torch.randn(2, 5, 8), torch.randn(2, 7)
    assert logits(Output(logits=classes)) is classes
    assert logits(hidden) is None
    assert pooled(Output(logits=classes, pooler_output=hidden)) is classes
    assert pooled(Output(image_embeds=classes, last_hidden_state=hidden)) is classes
    assert pooled(Output(pooler_output=None, last_hidden_state=hidden)).equal(hidden.mean(1))
    assert pooled(hidden).equal(hidden.mean(1))
    assert pooled((hidden, classes)).equal(hidden.mean(1))
    assert pooled(classes) is classes
    with pytest.raises(UsageError, match="holds no tensor to compare"):
        pooled({"a": 1})


def test_first_line() -> None:
    assert first_line(ValueError("\n a\nb\n c\nd"), 3) == "a b c"
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(ValueError()) == "ValueError"


def test_call_takes_both_kinds_of_inputs() -> None:
    def f(a: int, b: int) -> tuple[int, int]:
        return a, b

    assert list(itertools.chain(call(f, (1, 2)), call(f, {"b": 1, "a": 2}))) == [1, 2, 2, 1]
