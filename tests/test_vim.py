"""Vision Mamba against two plain forwards: the recurrence token by token, and the official two streams."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import one_thread, pixels, roughen  # noqa: F401
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from repshift_cli.kernels.select import top
from repshift_cli.models.base.vim import Block, Mixer, VisionMamba, class_position
from repshift_cli.records import kept

BATCH, WIDTH, DEPTH, STATES, PATCHES, CLASSES = 3, 16, 4, 4, 25, 7


@pytest.fixture(scope="module")
def vim() -> VisionMamba:
    torch.manual_seed(0)
    small = VisionMamba(WIDTH, DEPTH, image_size=40, patch_size=8, states=STATES, classes=CLASSES)
    return roughen(small).double()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return pixels(BATCH, 3, 40, 40)


@pytest.fixture(scope="module")
def vim_t() -> VisionMamba:
    return VisionMamba().eval()


# --- the arithmetic, written out --------------------------------------------------------------------------------------


def one_direction(xz: Tensor, mixer: Any, suffix: str, order: Sequence[int]) -> Tensor:
    """The gated outputs (B, N, inner) of one direction, which visits the tokens of xz (B, N, 2 inner) in `order`."""
    x, z = xz.split(xz.shape[-1] // 2, dim=-1)
    conv, x_proj, dt_proj = (getattr(mixer, name + suffix) for name in ("conv1d", "x_proj", "dt_proj"))
    A_log, D = (mixer.A_b_log, mixer.D_b) if suffix else (mixer.A_log, mixer.D)
    h = x.new_zeros(x.shape[0], x.shape[2], STATES)
    outputs: dict[int, Tensor] = {}
    for i, t in enumerate(order):
        taps = [x[:, order[i - back]] * conv.weight[:, 0, 3 - back] for back in range(4) if i >= back]
        u = F.silu(sum(taps) + conv.bias)
        step, B, C = (u @ x_proj.weight.T).split((dt_proj.weight.shape[1], STATES, STATES), dim=-1)
        delta = torch.log1p(torch.exp(step @ dt_proj.weight.T + dt_proj.bias))
        h = torch.exp(-delta[..., None] * A_log.exp()) * h + (delta * u)[..., None] * B[:, None]
        outputs[t] = ((h * C[:, None]).sum(-1) + D * u) * F.silu(z[:, t])
    return torch.stack([outputs[t] for t in range(x.shape[1])], dim=1)


def plain_mixer(mixer: Mixer, x: Tensor) -> Tensor:
    xz = x @ mixer.in_proj.weight.T
    order = list(range(x.shape[1]))
    both = one_direction(xz, mixer, "", order) + one_direction(xz, mixer, "_b", order[::-1])
    return both / 2 @ mixer.out_proj.weight.T


def rms_norm(norm: Any, x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight


Cut = Callable[[int, Tensor], Tensor | None]
"""(layer from 1, mixer output (B, N, C)) -> the tokens (B, n) that stay, in order, or None."""


def two_streams(vim: VisionMamba, images: Tensor, cut: Cut) -> Tensor:
    """The official forward: the mixer's output and the residual apart, and both cut after a block."""
    hidden, residual = vim.embed(images), None
    for layer, block in enumerate(vim.layers, start=1):
        residual = hidden if residual is None else residual + hidden
        hidden = plain_mixer(block.mixer, rms_norm(block.norm, residual))
        stay = cut(layer, hidden)
        if stay is not None:
            hidden, residual = (s.gather(1, stay[..., None].expand(-1, -1, WIDTH)) for s in (hidden, residual))
    normed = rms_norm(vim.norm_f, hidden + residual)
    return normed[:, (normed.shape[1] - 1) // 2] @ vim.head.weight.T + vim.head.bias


def one_stream(vim: VisionMamba, images: Tensor, cut: Cut) -> Tensor:
    """The module's own forward, its one stream cut at the end of a block."""
    seen: dict[int, Tensor] = {}

    def hooks(layer: int, block: Block) -> Iterator[Any]:
        yield block.mixer.register_forward_hook(lambda m, args, out: seen.__setitem__(layer, out))

        def at_end(m: Any, args: Any, out: Tensor) -> Tensor | None:
            stay = cut(layer, seen[layer])
            return None if stay is None else out.gather(1, stay[..., None].expand(-1, -1, WIDTH))

        yield block.register_forward_hook(at_end)

    handles = [h for layer, block in enumerate(vim.layers, start=1) for h in hooks(layer, block)]
    try:
        with torch.inference_mode():
            return vim(images)
    finally:
        for handle in handles:
            handle.remove()


def cutting(layers: tuple[int, ...], keep: float) -> Cut:
    """Keeps the patches with the largest update, sorted, and puts the class token back into their middle."""

    def cut(layer: int, update: Tensor) -> Tensor | None:
        if layer not in layers:
            return None
        tokens = update.shape[1]
        middle = (tokens - 1) // 2
        patches = torch.tensor([t for t in range(tokens) if t != middle])
        best = patches[top(update[:, patches].norm(dim=-1), kept(tokens - 1, keep))]
        half = best.shape[1] // 2
        return torch.cat((best[:, :half], torch.full((best.shape[0], 1), middle), best[:, half:]), dim=1)

    return cut


# --- the model --------------------------------------------------------------------------------------------------------


def test_the_mixer_is_both_recurrences(vim: VisionMamba) -> None:
    x = pixels(BATCH, 11, WIDTH)
    with torch.inference_mode():
        for block in vim.layers:
            torch.testing.assert_close(block.mixer(x), plain_mixer(block.mixer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("layers", "keep"), [((), 1.0), ((1, 3), 0.8), ((2,), 0.3), ((1, 2, 3, 4), 0.5)])
def test_one_stream_is_the_official_two(vim: VisionMamba, images: Tensor, layers: tuple[int, ...], keep: float) -> None:
    cut = cutting(layers, keep)
    with torch.inference_mode():
        expected = two_streams(vim, images, cut)
    logits = one_stream(vim, images, cut)
    assert logits.shape == (BATCH, CLASSES)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("tokens", "position"), [(197, 98), (158, 78), (127, 63), (2, 0), (1, 0)])
def test_the_class_token_is_in_the_middle(tokens: int, position: int) -> None:
    assert class_position(tokens) == position


def test_the_class_token_enters_where_it_is_read(vim: VisionMamba, images: Tensor) -> None:
    with torch.inference_mode():
        x = vim.embed(images)
        patches = vim.patch_embed(images).flatten(2).transpose(1, 2)
        place = class_position(PATCHES + 1)
        assert torch.equal(x[:, place], (vim.cls_token + vim.pos_embed[:, place])[0].expand(BATCH, -1))
        others = [t for t in range(PATCHES + 1) if t != place]
        assert torch.equal(x[:, others], patches + vim.pos_embed[:, others])


def test_half_precision_stays_close_to_the_same_weights_in_float64(vim: VisionMamba, images: Tensor) -> None:
    narrow = VisionMamba(WIDTH, DEPTH, image_size=40, patch_size=8, states=STATES, classes=CLASSES).bfloat16()
    narrow.load_state_dict(vim.state_dict())
    with torch.inference_mode():
        out, exact = narrow(images.bfloat16()), vim(images)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))


# --- ViM-T ------------------------------------------------------------------------------------------------------------


def test_vim_t_has_the_official_parameters(vim_t: VisionMamba) -> None:
    assert sum(p.numel() for p in vim_t.parameters()) == 7_148_008  # "number of params" in ToP-ViM's training log
    mixer = {"A_log", "A_b_log", "D", "D_b", "in_proj.weight", "out_proj.weight"}
    mixer |= {f"{m}{b}.weight" for m in ("conv1d", "x_proj", "dt_proj") for b in ("", "_b")}
    mixer |= {f"{m}{b}.bias" for m in ("conv1d", "dt_proj") for b in ("", "_b")}
    names = {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm_f.weight"}
    names |= {"head.weight", "head.bias"} | {f"layers.{i}.norm.weight" for i in range(24)}
    assert set(vim_t.state_dict()) == names | {f"layers.{i}.mixer.{n}" for i in range(24) for n in mixer}


def vim_macs(tokens: Sequence[int], width: int = 192, states: int = 16) -> int:
    """MACs of one image when block i sees tokens[i] tokens, from the sizes alone; the scan counts 4 per state."""
    inner, rank = 2 * width, width // 16
    direction = inner * 4 + inner * (rank + 2 * states) + rank * inner + 4 * inner * states
    per_token = width * 2 * inner + 2 * direction + inner * width
    return sum(tokens) * per_token + 196 * 3 * 16 * 16 * width + width * 1000


def test_vim_t_has_the_papers_macs(vim_t: VisionMamba) -> None:
    """Table 7 of the paper: 1.5 and 1.3 G; cut to 0.8 after blocks 10 and 20, as ToP-ViM's code does for ViM-T."""
    cut = {10: slice(0, 158), 20: slice(0, 127)}
    handles = [vim_t.layers[n - 1].register_forward_hook(lambda m, a, out, s=s: out[:, s]) for n, s in cut.items()]
    image = torch.zeros(1, 3, 224, 224)
    pruned = counted(vim_t, image)
    for handle in handles:
        handle.remove()
    base = counted(vim_t, image)
    assert base == vim_macs([197] * 24) == 1_525_108_224
    assert pruned == vim_macs([197] * 10 + [158] * 10 + [127] * 4) == 1_313_109_504
    assert (round(base / 1e9, 1), round(pruned / 1e9, 1)) == (1.5, 1.3)


def counted(module: VisionMamba, image: Tensor) -> float:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        module(image)
    return counter.get_total_flops() / 2
