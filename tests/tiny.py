"""Tiny models of every family, each with a plain forward of its own: the blocks' arithmetic written out, no hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from repshift_cli.models.base.transformers import logits, pooled
from repshift_cli.models.discovery.blocks import find_sites, prefix_tokens
from repshift_cli.records import Case, Subject

DEPTH, WIDTH, BATCH = 3, 32, 3

BRANCHES = {
    "mlp": ("resid_mid", "mlp_out"),
    "attention": ("resid_pre", "attn_out"),
    "block": ("resid_pre", "resid_post"),
}
"""By operation, what a method sees before it and what the operation gives."""

Module = Any
Block = tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]
"""x -> SA(LN(x)) and x' -> MLP(LN(x')), LayerScale included; post-norm: x -> SA(x) and x' -> MLP(x')."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """For the modules that import it: tensors this small are faster on one thread, on a busy machine by far."""
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(was)


@dataclass(frozen=True)
class Plain:
    """A model with its inputs and its forward in three parts: `embed`, the blocks, `finish` to the compared output."""

    module: Module
    inputs: Any
    prefix: int
    tokens: int
    embed: Callable[[Any], Tensor]
    blocks: Sequence[Block]
    finish: Callable[[Tensor], Tensor]
    compared: Callable[[Any], Tensor]
    norms: Sequence[tuple[Module, Module]] = ()
    """Post-norm: what each block puts behind its two sums."""
    placed: bool = False
    """Whether `attention(x, places)` is told where its tokens stood at first, (B, n), for a mask or rotations."""

    def forward(self, cut: Callable[[int, dict[str, Tensor]], Tensor] | None = None) -> Tensor:
        """The output; `cut(layer, seen)` gives the hidden states after block `layer` (from 1), as it finds fit."""
        x = self.embed(self.inputs)
        places = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        norms = self.norms or [(nn.Identity(), nn.Identity())] * len(self.blocks)
        for layer, ((attention, mlp), (norm1, norm2)) in enumerate(zip(self.blocks, norms, strict=True), start=1):
            branch = attention(x, places) if self.placed else attention(x)
            middle = norm1(x + branch)
            update = mlp(middle)
            out = norm2(middle + update)
            seen = {"resid_pre": x, "attn_out": branch, "resid_mid": middle, "mlp_out": update, "resid_post": out}
            x = out if cut is None else cut(layer, seen)
            if self.placed and x is not out:
                places = places.gather(1, rows_among(x, out))
        return self.finish(x)


def rows_among(few: Tensor, many: Tensor) -> Tensor:
    """Which rows of `many` (B, n, C) those of `few` (B, k, C) are: (B, k)."""
    return (few.unsqueeze(2) == many.unsqueeze(1)).all(-1).int().argmax(-1)


def case(**changes: Any) -> Case:
    """A case on the CPU, by default unpruned under vanilla attention; repshift's options by their names."""
    given: dict[str, Any] = {
        "model": "tiny",
        "input": "random",
        "weights": "random",
        "image_size": None,
        "frames": None,
        "batch": BATCH,
        "dtype": "fp32",
        "device": "cpu",
        "attention": "vanilla",
    }
    own = {name: changes.pop(name, None) for name in ("operation", "distance", "form")}
    options = tuple((name, value) for name, value in own.items() if value is not None)
    return Case(**{**given, "options": options, **changes})


def subject(module: Module, inputs: Any) -> Subject:
    """The subject that a family file would build around this module."""
    found, prefix = find_sites(module, inputs), prefix_tokens(module)
    return Subject(
        module,
        inputs,
        (inputs,),
        found.sites,
        prefix,
        found.entering - prefix,
        "img",
        logits,
        pooled,
        companions=found.companions,
        spread=found.spread,
    )


def roughen(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random values for every parameter, so that no bias is zero, no norm and no LayerScale is one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(p + 0.3 * noise if p.ndim < 2 or p.shape[0] == 1 else 0.2 * noise)
    return module.eval()


def pixels(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


# --- transformers ---------------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 32,
    "attn_implementation": "sdpa",
}
TOKENS = (32 // 8) ** 2


def vit() -> Plain:
    from transformers import ViTConfig, ViTForImageClassification

    module: Module = roughen(ViTForImageClassification(ViTConfig(**SIZES, num_labels=7))).double()
    body = module.vit
    return Plain(
        module,
        {"pixel_values": pixels(BATCH, 3, 32, 32)},
        prefix=1,
        tokens=TOKENS,
        embed=lambda inputs: body.embeddings(inputs["pixel_values"]),
        blocks=[_before_after(b) for b in body.layers],
        finish=lambda x: module.classifier(body.layernorm(x)[:, 0]),
        compared=lambda out: out.logits,
    )


def deit_distilled() -> Plain:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    module: Module = roughen(DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZES, num_labels=7))).double()
    body = module.deit

    def finish(x: Tensor) -> Tensor:
        x = body.layernorm(x)
        return (module.cls_classifier(x[:, 0]) + module.distillation_classifier(x[:, 1])) / 2

    return Plain(
        module,
        {"pixel_values": pixels(BATCH, 3, 32, 32)},
        prefix=2,
        tokens=TOKENS,
        embed=lambda inputs: body.embeddings(inputs["pixel_values"]),
        blocks=[_before_after(b) for b in body.layers],
        finish=finish,
        compared=lambda out: out.logits,
    )


def _before_after(b: Module) -> Block:
    return (lambda x: first(b.attention(b.layernorm_before(x)))), (lambda x: b.mlp(b.layernorm_after(x)))


def dinov2() -> Plain:
    from transformers import Dinov2Config, Dinov2Model

    return _dino(roughen(Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2))).double(), prefix=1)


def dinov2_registers() -> Plain:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, num_register_tokens=3)
    return _dino(roughen(Dinov2WithRegistersModel(config)).double(), prefix=4)


def _dino(module: Module, prefix: int) -> Plain:
    def block(b: Module) -> Block:
        return (
            lambda x: first(b.attention(b.norm1(x))) * b.layer_scale1.lambda1,
            lambda x: b.mlp(b.norm2(x)) * b.layer_scale2.lambda1,
        )

    return Plain(
        module,
        {"pixel_values": pixels(BATCH, 3, 32, 32)},
        prefix,
        TOKENS,
        embed=lambda inputs: module.embeddings(inputs["pixel_values"]),
        blocks=[block(b) for b in module.encoder.layer],
        finish=lambda x: module.layernorm(x),
        compared=lambda out: out.last_hidden_state,
    )


def dinov3() -> Plain:
    """Rotary embeddings of the patches alone, behind a class token and three registers."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    module: Module = roughen(DINOv3ViTModel(DINOv3ViTConfig(**SIZES, num_register_tokens=3))).double()
    inputs = {"pixel_values": pixels(BATCH, 3, 32, 32)}
    cos, sin = (rotary.double() for rotary in module.rope_embeddings(inputs["pixel_values"]))

    def turned(heads: Tensor, places: Tensor) -> Tensor:
        """Each patch's pairs (i, i + d / 2) turned by the angles of its place; (B, heads, n, d)."""
        front, back = heads[:, :, 4:].chunk(2, -1)
        c, s = (angles.to(heads)[places[:, 4:] - 4].unsqueeze(1) for angles in (cos, sin))
        return torch.cat((heads[:, :, :4], heads[:, :, 4:] * c + torch.cat((-back, front), -1) * s), 2)

    def block(b: Module) -> Block:
        a = b.attention

        def attention(x: Tensor, places: Tensor) -> Tensor:
            x = b.norm1(x)
            q, k, v = (project(x).unflatten(-1, (4, -1)).transpose(1, 2) for project in (a.q_proj, a.k_proj, a.v_proj))
            weights = turned(q, places) @ turned(k, places).transpose(-1, -2) * a.scaling
            return a.o_proj((weights.softmax(-1) @ v).transpose(1, 2).flatten(2)) * b.layer_scale1.lambda1

        return attention, (lambda x: b.mlp(b.norm2(x)) * b.layer_scale2.lambda1)

    return Plain(
        module,
        inputs,
        prefix=4,
        tokens=TOKENS,
        embed=lambda inputs: module.embeddings(inputs["pixel_values"]),
        blocks=[block(m) for m in module.modules() if type(m).__name__ == "DINOv3ViTLayer"],
        finish=lambda x: module.norm(x),
        compared=lambda out: out.last_hidden_state,
        placed=True,
    )


def clip() -> Plain:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    module: Module = roughen(CLIPVisionModel(CLIPVisionConfig(**SIZES))).double()
    return Plain(
        module,
        {"pixel_values": pixels(BATCH, 3, 32, 32)},
        prefix=1,
        tokens=TOKENS,
        embed=lambda inputs: module.pre_layrnorm(module.embeddings(inputs["pixel_values"])),
        blocks=[_clip_block(b) for b in module.encoder.layers],
        finish=lambda x: module.post_layernorm(x[:, 0]),
        compared=lambda out: out.pooler_output,
    )


def siglip() -> Plain:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    module: Module = roughen(SiglipVisionModel(SiglipVisionConfig(**SIZES))).double()
    return Plain(
        module,
        {"pixel_values": pixels(BATCH, 3, 32, 32)},
        prefix=0,
        tokens=TOKENS,
        embed=lambda inputs: module.embeddings(inputs["pixel_values"]),
        blocks=[_clip_block(b) for b in module.encoder.layers],
        finish=lambda x: module.head(module.post_layernorm(x)),
        compared=lambda out: out.pooler_output,
    )


def _clip_block(b: Module) -> Block:
    return (
        lambda x: first(b.self_attn(hidden_states=b.layer_norm1(x), attention_mask=None)),
        lambda x: b.mlp(b.layer_norm2(x)),
    )


def videomae() -> Plain:
    """UMT's shape: tubelet 1, mean pooled, no class token; here 3 frames of 16 tokens."""
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(**SIZES, num_frames=3, tubelet_size=1, use_mean_pooling=True)
    module: Module = roughen(VideoMAEModel(config)).double()

    def block(b: Module) -> Block:
        def mlp(x: Tensor) -> Tensor:
            inner = b.intermediate.intermediate_act_fn(b.intermediate.dense(b.layernorm_after(x)))
            return b.output.dense(inner)

        return (lambda x: first(b.attention(b.layernorm_before(x)))), mlp

    return Plain(
        module,
        {"pixel_values": pixels(BATCH, 3, 3, 32, 32)},
        prefix=0,
        tokens=3 * TOKENS,
        embed=lambda inputs: module.embeddings(inputs["pixel_values"], None),
        blocks=[block(b) for b in module.encoder.layer],
        finish=lambda x: x.mean(1),
        compared=lambda out: out.last_hidden_state.mean(1),
    )


def vivit() -> Plain:
    """Joint attention over 3 tubelets of 2 frames, 16 positions each, under a class token."""
    from transformers import VivitConfig, VivitForVideoClassification

    sizes = {**{n: v for n, v in SIZES.items() if n != "patch_size"}, "tubelet_size": [2, 8, 8], "num_frames": 6}
    module: Module = roughen(VivitForVideoClassification(VivitConfig(**sizes, num_labels=7))).double()
    body = module.vivit

    def block(b: Module) -> Block:
        return (lambda x: first(b.attention(b.layernorm_before(x)))), (lambda x: b.mlp(b.layernorm_after(x)))

    return Plain(
        module,
        {"pixel_values": pixels(BATCH, 6, 3, 32, 32)},
        prefix=1,
        tokens=3 * TOKENS,
        embed=lambda inputs: body.embeddings(inputs["pixel_values"]),
        blocks=[block(b) for b in body.layers],
        finish=lambda x: module.classifier(body.layernorm(x)[:, 0]),
        compared=lambda out: out.logits,
    )


# --- plain torch ----------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class PreNorm(nn.Module):
    """x' = x + A(LN(x)), x'' = x' + M(LN(x')), with one dropout that serves both branches."""

    def __init__(self, width: int = WIDTH, heads: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = Attention(width, heads)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.shared = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shared(self.mix(self.first(x)))
        return x + self.shared(self.feed(self.second(x)))


class PlainTransformer(nn.Module):
    """Blocks under a class token, read out at that token."""

    def __init__(
        self, make: Callable[[], nn.Module] = PreNorm, depth: int = DEPTH, width: int = WIDTH, classes: int = 5
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(make() for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def plain_torch() -> Plain:
    module: Module = roughen(PlainTransformer()).double()

    def block(b: Module) -> Block:
        return (lambda x: b.mix(b.first(x))), (lambda x: b.feed(b.second(x)))

    return Plain(
        module,
        (pixels(BATCH, 12, WIDTH),),
        prefix=1,
        tokens=12,
        embed=lambda inputs: torch.cat((module.cls_token.expand(len(inputs[0]), -1, -1), inputs[0]), dim=1),
        blocks=[block(b) for b in module.blocks],
        finish=lambda x: module.head(module.norm(x[:, 0])),
        compared=lambda out: out,
    )


class Encoder(nn.Module):
    """torch's own encoder under a class token; `mask` (B, N) is True for padding."""

    def __init__(self, norm_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, batch_first=True, norm_first=norm_first)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        return self.encoder(x, src_key_padding_mask=mask)


def torch_encoder() -> Plain:
    module: Module = roughen(Encoder()).double()

    def block(b: Module) -> Block:
        def attention(x: Tensor) -> Tensor:
            x = b.norm1(x)
            return b.self_attn(x, x, x, need_weights=False)[0]

        return attention, (lambda x: b.linear2(b.linear1(b.norm2(x)).relu()))

    return Plain(
        module,
        (pixels(BATCH, 12, WIDTH),),
        prefix=1,
        tokens=12,
        embed=lambda inputs: torch.cat((module.cls_token.expand(len(inputs[0]), -1, -1), inputs[0]), dim=1),
        blocks=[block(b) for b in module.encoder.layers],
        finish=lambda x: x,
        compared=lambda out: out,
    )


def post_norm() -> Plain:
    return _post_norm(padding=())


def post_norm_padded() -> Plain:
    """Samples of 13, 10 and 9 tokens."""
    return _post_norm(padding=(0, 3, 4))


def _post_norm(padding: tuple[int, ...]) -> Plain:
    module: Module = roughen(Encoder(norm_first=False)).double()
    hidden = torch.stack([torch.arange(13) >= 13 - n for n in padding or (0,) * BATCH])

    def block(b: Module) -> Block:
        def attention(x: Tensor, places: Tensor) -> Tensor:
            a = b.self_attn
            qkv = nn.functional.linear(x, a.in_proj_weight, a.in_proj_bias)
            q, k, v = qkv.unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            scores = q @ k.transpose(-1, -2) / (WIDTH / 4) ** 0.5
            scores = scores.masked_fill(hidden.to(x.device).gather(1, places)[:, None, None], float("-inf"))
            return a.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

        return attention, (lambda x: b.linear2(b.linear1(x).relu()))

    return Plain(
        module,
        {"tokens": pixels(BATCH, 12, WIDTH), **({"mask": hidden} if padding else {})},
        prefix=1,
        tokens=12,
        embed=lambda inputs: torch.cat((module.cls_token.expand(BATCH, -1, -1), inputs["tokens"]), dim=1),
        blocks=[block(b) for b in module.encoder.layers],
        finish=lambda x: x,
        compared=lambda out: out,
        norms=[(b.norm1, b.norm2) for b in module.encoder.layers],
        placed=True,
    )


FAMILIES: dict[str, Callable[[], Plain]] = {
    "vit": vit,
    "deit_distilled": deit_distilled,
    "dinov2": dinov2,
    "dinov2_registers": dinov2_registers,
    "dinov3": dinov3,
    "clip": clip,
    "siglip": siglip,
    "videomae": videomae,
    "vivit": vivit,
    "plain_torch": plain_torch,
    "torch_encoder": torch_encoder,
    "post_norm": post_norm,
    "post_norm_padded": post_norm_padded,
}


def small_model() -> tuple[nn.Module, Any]:
    """For the command line: `--model tiny:small_model`."""
    return roughen(PlainTransformer(depth=2)), (torch.randn(2, 12, WIDTH),)
