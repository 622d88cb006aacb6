"""What travels beside the tokens is cut like them: by hand where shapes tell it, by trial where they do not."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from test_reduction import SCHEDULES, reference, run
from tiny import FAMILIES, case, one_thread  # noqa: F401
from torch import Tensor, nn

from repshift_cli.kernels.along import along
from repshift_cli.models.discovery.arguments import PLACES, WHOLE
from repshift_cli.models.discovery.blocks import CAUSAL, NoSites, find_sites
from repshift_cli.reduction import oracle, stride

B, N, D, H = 2, 5, 7, 3
PLACES_KEPT = torch.tensor([[0, 2, 4], [0, 1, 3]])
"""Of five tokens, the first of them a prefix."""


def numbered(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def cut(value: Any, name: str = "", spread: int = 0, prefix: int = 1) -> Any:
    return along(value, name, N, prefix, PLACES_KEPT, spread)


def rows(value: Tensor, sample: int, *dims: int, skip: int = 0) -> Tensor:
    """The entries of one sample's places along `dims`, one dimension after the other."""
    places = PLACES_KEPT[sample, skip:] - skip
    for dim in dims:
        value = value.index_select(dim, places)
    return value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
@pytest.mark.parametrize(
    ("shape", "dims"),
    [((B, 1, N, N), (-2, -1)), ((1, 1, N, N), (-2, -1)), ((B, H, N, N), (-2, -1)), ((B, N, N), (-2, -1)),
     ((1, N, N), (-2, -1)), ((B, 1, 1, N), (-1,)), ((1, 1, 1, N), (-1,)), ((B, N), (-1,)), ((1, N), (-1,))],
)  # fmt: skip
def test_masks(shape: tuple[int, ...], dims: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = numbered(*shape, dtype=torch.int64)
    mask = mask % 3 == 0 if dtype == torch.bool else mask.to(dtype)
    got = cut(mask, "attention_mask")
    for sample in range(B):
        own = mask[sample] if shape[0] == B else mask[0]
        assert torch.equal(got[sample], rows(own, sample, *dims))


@pytest.mark.parametrize(("spread", "shape"), [(0, (B, 3, 3)), (1, (B, 1, 3, 3))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_a_mask_that_all_samples_share(spread: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = (numbered(N, N) % 3).to(dtype)
    got = cut(mask, "mask", spread)
    assert got.shape == shape
    for sample in range(B):
        assert torch.equal(got[sample].reshape(3, 3), rows(mask, sample, 0, 1))


@pytest.mark.parametrize(
    ("shape", "spread", "expected"),
    [((N, D), 0, (B, 3, D)), ((N, D), 1, (B, 1, 3, D)), ((1, N, D), 0, (B, 3, D)), ((1, N, D), 1, (B, 1, 3, D)),
     ((B, N, D), 0, (B, 3, D)), ((H, N, D), 0, (B, H, 3, D)), ((1, 1, N, D), 1, (B, 1, 3, D)),
     ((1, H, N, D), 1, (B, H, 3, D)), ((B, 1, N, D), 0, (B, 1, 3, D)),
     ((N, N), 0, (B, 3, N)), ((1, N, N), 0, (B, 3, N)), ((B, N, N), 0, (B, 3, N))],
)  # fmt: skip
def test_rotary_embeddings(shape: tuple[int, ...], spread: int, expected: tuple[int, ...]) -> None:
    """As wide as there are tokens (N, N) too: the last dimension of what is no mask is its width."""
    value = numbered(*shape)
    got = cut(value, "cos", spread)
    assert got.shape == expected
    for sample in range(B):
        own = value[sample] if shape[0] == B else value.reshape(shape[1:]) if shape[0] == 1 else value
        assert torch.equal(got[sample].squeeze(), rows(own, sample, -2).squeeze())


@pytest.mark.parametrize("shape", [(N - 1, D), (1, N - 1, D), (B, N - 1, D), (B, 1, N - 1, D)])
def test_what_the_prefix_has_no_entry_in(shape: tuple[int, ...]) -> None:
    value = numbered(*shape)
    got = cut(value, "cos")
    for sample in range(B):
        own = value[sample] if shape[0] == B else value.reshape(N - 1, D)
        assert torch.equal(got[sample].squeeze(), rows(own, sample, -2, skip=1).squeeze())


@pytest.mark.parametrize("shape", [(N,), (1, N), (B, N)])
def test_position_ids(shape: tuple[int, ...]) -> None:
    ids = numbered(*shape, dtype=torch.int64)
    own = ids.expand(B, N)
    assert cut(ids, "position_ids").tolist() == [own[b, PLACES_KEPT[b]].tolist() for b in range(B)]


def test_what_counts_no_tokens_is_given_back_itself() -> None:
    for value in (numbered(B, D), numbered(H, D), numbered(H), numbered(3, 2, 9, 7), torch.tensor(2.0), None, "text"):
        assert cut(value, "attention_mask") is value


def test_containers_keep_their_kind() -> None:
    Rotary = namedtuple("Rotary", ["cos", "sin"])
    cos = numbered(N, D)
    got = cut({"full": (cos, cos + 1), "own": Rotary(cos, cos), "list": [cos, None]})
    assert torch.equal(got["full"][1], cut(cos) + 1)
    assert torch.equal(got["own"].sin, cut(cos))
    assert got["list"][1] is None


def test_places_that_all_samples_share() -> None:
    """As a fixed choice gives them, (1, k): what is laid out per sample still is, what was shared still is."""
    places = torch.tensor([[0, 2]])
    mask, cos = numbered(B, N), numbered(N, D)
    assert torch.equal(along(mask, "mask", N, 1, places, 0, batch=B), mask[:, [0, 2]])
    assert torch.equal(along(numbered(B, N, D), "cos", N, 1, places, 0, batch=B), numbered(B, N, D)[:, [0, 2]])
    assert torch.equal(along(cos, "cos", N, 1, places, 0, batch=B), cos[None, [0, 2]])


@pytest.mark.parametrize(("method", "choose"), [(stride, stride.choose), (oracle, oracle.choose)])
@pytest.mark.parametrize("family", ["post_norm_padded", "dinov3"])
@pytest.mark.parametrize(("keep", "layers"), SCHEDULES)
def test_fixed_choices_cut_masks_and_rotations(
    family: str, method: Any, choose: Any, keep: float, layers: tuple[int, ...]
) -> None:
    plain = FAMILIES[family]()

    def scores(seen: dict[str, Tensor]) -> list[list[float]]:
        tokens = seen["resid_post"].shape[1]
        kept = choose(tokens, tokens - tokens * (1000 - round(1000 * keep)) // 1000)
        return [[float(i in kept) for i in range(tokens)]] * tiny.BATCH

    expected = reference(plain, keep, layers, scores)
    got = run(plain, method, case(pruning="any", keep=keep, layers=layers))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


# --- which blocks may be cut ------------------------------------------------------------------------------------------


class Placed(nn.Module):
    """A pre-norm block whose queries and keys are turned by `angles`, the same for all heads, under `mask`."""

    def __init__(self, inside: bool = False, causal: bool = False, table: bool = False, conv: bool = False) -> None:
        super().__init__()
        self.inside, self.causal, self.conv = inside, causal, conv
        self.first, self.second = nn.LayerNorm(tiny.WIDTH), nn.LayerNorm(tiny.WIDTH)
        self.mix = PlacedAttention(causal)
        self.feed = nn.Sequential(nn.Linear(tiny.WIDTH, 8), nn.GELU(), nn.Linear(8, tiny.WIDTH))
        self.table = nn.Parameter(torch.randn(40, 40)) if table else None
        self.near = nn.Conv1d(tiny.WIDTH, tiny.WIDTH, 3, padding=1)

    def forward(self, x: Tensor, angles: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if self.inside:
            angles = turns(x.shape[1])
        if self.table is not None:
            mask = self.table[: x.shape[1], : x.shape[1]]
        x = x + self.mix(self.first(x), angles, mask)
        after = self.second(x)
        return x + self.feed(self.near(after.mT).mT if self.conv else after)


class PlacedAttention(tiny.Attention):
    def __init__(self, causal: bool) -> None:
        super().__init__(tiny.WIDTH, 4)
        self.causal = causal

    def forward(self, x: Tensor, angles: Tensor | None = None, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = turn(q, angles), turn(k, angles)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


def turns(length: int) -> Tensor:
    """Angles (length, d / 2) of rotary embeddings."""
    return torch.arange(length).unsqueeze(1) / torch.tensor([1.0, 3.0, 10.0, 30.0])


def turn(heads: Tensor, angles: Tensor) -> Tensor:
    one, two = heads.chunk(2, -1)
    c, s = angles.cos().to(heads), angles.sin().to(heads)
    return torch.cat((one * c - two * s, one * s + two * c), -1)


class PlacedModel(nn.Module):
    def __init__(self, given: dict[str, Tensor] | None = None, **options: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Placed(**options) for _ in range(3))
        self.given = given or {}

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, **self.given)
        return tokens


def found(given: dict[str, Tensor] | None = None, batch: int = 2, tokens: int = 12, **options: bool) -> Any:
    return find_sites(tiny.roughen(PlacedModel(given, **options)), (torch.randn(batch, tokens, tiny.WIDTH),))


@pytest.mark.parametrize("options", [{"inside": True}, {"table": True}, {"conv": True}])
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks_that_count_their_tokens_by_themselves_are_refused(options: dict[str, bool], batch: int) -> None:
    """A cut runs, and every token behind it would be turned by another angle than before."""
    with pytest.raises(NoSites, match="tell their tokens' places by themselves") as refusal:
        found(batch=batch, **options)
    assert refusal.value.looked[0] == ("blocks.0 ... blocks.2 (Placed)", f"they {PLACES}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("inside", [False, True])
def test_in_every_dtype(dtype: torch.dtype, inside: bool) -> None:
    module = tiny.roughen(PlacedModel({"angles": turns(40)}, inside=inside)).to(dtype)
    inputs = (torch.randn(2, 40, tiny.WIDTH, dtype=dtype),)
    if inside:
        with pytest.raises(NoSites, match="by themselves"):
            find_sites(module, inputs)
    else:
        assert find_sites(module, inputs).companions == ("angles",)


def test_causal_blocks_are_let_through_with_a_warning() -> None:
    assert found(causal=True).warnings == (CAUSAL,)
    assert found(causal=True, inside=True).warnings == (CAUSAL,), "this is what cannot be told"
    assert found().warnings == ()


@pytest.mark.parametrize(
    ("given", "spread"),
    [({"angles": turns(12)}, 1), ({"angles": turns(12)[None]}, 1), ({"angles": turns(12)[None, None]}, 0),
     ({"mask": torch.randn(12, 12)}, 1), ({"mask": torch.randn(1, 1, 12, 12)}, 0),
     ({"mask": torch.randn(12, 12) > -1}, 1), ({"mask": torch.randn(2, 1, 12, 12)}, 0),
     ({"mask": torch.randn(2, 1, 1, 12)}, 0), ({"angles": turns(12), "mask": torch.randn(12, 12)}, 1)],
)  # fmt: skip
def test_arguments_are_cut_along(given: dict[str, Tensor], spread: int) -> None:
    seen = found(given)
    assert (set(seen.companions), seen.spread) == (set(given), spread)


@pytest.mark.parametrize(
    ("given", "batch", "tokens"),
    [({"angles": turns(4)}, 4, 4), ({"angles": turns(4)}, 2, 4), ({"angles": torch.randn(4, 12, 4)}, 4, 12),
     ({"mask": torch.randn(4, 4)}, 4, 4), ({"angles": torch.randn(4, 12, 4)}, 1, 12)],
)  # fmt: skip
def test_sizes_that_coincide_are_cut_rightly_or_refused(given: dict[str, Tensor], batch: int, tokens: int) -> None:
    """B = N, d / 2 = N, heads = B: whatever is believed, a mixed batch must give the mixed output."""
    module = tiny.roughen(PlacedModel(given)).double()
    x = tiny.pixels(batch, tokens, tiny.WIDTH)
    try:
        seen = find_sites(module, (x,))
    except NoSites as refusal:
        assert WHOLE in str(refusal) or PLACES in str(refusal)
        return
    assert seen.companions == tuple(given)
    order = torch.stack([torch.randperm(tokens, generator=torch.Generator().manual_seed(b)) for b in range(batch)])
    block = module.blocks[0]
    beside = {n: along(v, n, tokens, 0, order, seen.spread) for n, v in given.items()}
    mixed = block(x.take_along_dim(order[..., None], 1), **beside)
    torch.testing.assert_close(mixed, block(x, **given).take_along_dim(order[..., None], 1))
