"""Llava- and Qwen2-VL-like checkpoints: image tokens dropped in the language model, against a forward written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from test_reduction import best, pruning
from tiny import case, one_thread, roughen  # noqa: F401
from torch import Tensor, nn

from repshift_cli.attention import eager, flash, vanilla
from repshift_cli.benchmark import builder
from repshift_cli.models import hf
from repshift_cli.models.base.vision_language import QUESTION, SYSTEM, _packed
from repshift_cli.records import Case, Subject, UsageError, call, kept
from repshift_cli.reduction import dash

KINDS = ("llava", "qwen2_vl")
DEPTH, WIDTH, IMAGE = 4, 32, 16
TEXT: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 200,
    "max_position_embeddings": 128,
}
SECTIONS = [1, 1, 2]
"""Of four pairs of channels: turned by the time, the row, and the column."""


def saved(kind: str, folder: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 100.0}
    if kind == "llava":
        vision: Any = t.CLIPVisionConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
        )
        text: Any = t.LlamaConfig(**TEXT, rope_parameters=rope)
        config: Any = t.LlavaConfig(vision_config=vision, text_config=text, image_token_index=199)
        module: Any = t.LlavaForConditionalGeneration(config)
    else:
        text = {**TEXT, "rope_parameters": {**rope, "mrope_section": SECTIONS}, "bos_token_id": 1, "eos_token_id": 2}
        vision = {"depth": 3, "embed_dim": 48, "hidden_size": WIDTH, "num_heads": 4, "patch_size": 8, "mlp_ratio": 2}
        special = {"image_token_id": 199, "video_token_id": 198, "vision_start_token_id": 197}
        config = t.Qwen2VLConfig(text_config=text, vision_config=vision, **special)
        module = t.Qwen2VLForConditionalGeneration(config)
    module.save_pretrained(folder)


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp(request.param)
    saved(request.param, folder)
    yield request.param, folder


def vlm_case(folder: Path, **changes: Any) -> Case:
    facts = hf.facts(f"hf:{folder}", size_of(folder))
    given = {"model": f"hf:{folder}", "weights": facts.weights, "image_size": facts.image_size, "batch": 2}
    return case(**{**given, **changes})


def size_of(folder: Path) -> int | None:
    return 64 if "qwen" in str(folder) else None


def exact(folder: Path) -> Subject:
    """In fp64, the language model's norms too: transformers' own round to fp32."""
    made = hf.build(vlm_case(folder))
    for parent in list(made.module.model.language_model.modules()):
        for name, child in parent.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, nn.RMSNorm(WIDTH, eps=1e-6))
    roughen(made.module).double()
    inputs = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in made.inputs.items()}
    return replace(made, inputs=inputs)


# --- written out ------------------------------------------------------------------------------------------------------


def embedded(kind: str, made: Subject) -> Tensor:
    """(B, N, C): the text's embeddings, with the projected features of the image in its places."""
    body, given = made.module.model, made.inputs
    x = body.language_model.embed_tokens.weight[given["input_ids"]].clone()
    if kind == "llava":
        states = body.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states
        features = body.multi_modal_projector(states[-2][:, 1:])
    else:
        features = body.visual(given["pixel_values"], grid_thw=given["image_grid_thw"]).pooler_output
        features = features.unflatten(0, (2, IMAGE))
    x[:, SYSTEM : SYSTEM + IMAGE] = features
    return x


def positions(kind: str) -> Tensor:
    """(3, N): time, row and column; text moves along all three at once, behind an image from its largest on."""
    length = SYSTEM + IMAGE + QUESTION
    if kind == "llava":
        return torch.arange(length).expand(3, -1)
    side = int(IMAGE**0.5)
    row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    image = torch.stack((torch.zeros(IMAGE, dtype=torch.long), row, column)) + SYSTEM
    return torch.cat(
        (torch.arange(SYSTEM).expand(3, -1), image, torch.arange(QUESTION).expand(3, -1) + SYSTEM + side), dim=1
    )


def turned(x: Tensor, places: Tensor) -> Tensor:
    """Rotary positions of (n, heads, 8): the pair (x_i, x_(i+4)) turned by its direction's place; angles in fp32."""
    own = torch.stack([places[axis] for axis, n in enumerate(SECTIONS) for _ in range(n)], dim=1)
    angle = (own.float() * (1 / 100.0 ** (torch.arange(0, 8, 2) / 8)))[:, None]
    cos, sin = angle.cos().double(), angle.sin().double()
    one, two = x[..., :4], x[..., 4:]
    return torch.cat((one * cos - two * sin, two * cos + one * sin), dim=-1)


def normed(x: Tensor, module: nn.RMSNorm) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * module.weight


def reference(kind: str, made: Subject, keep: float, layers: tuple[int, ...]) -> Tensor:
    """The next token's logits (B, vocabulary); image tokens with the longest attention branch stay."""
    language, results = made.module.model.language_model, []
    for x in embedded(kind, made):
        places = positions(kind)
        for layer, b in enumerate(language.layers, start=1):
            a, h = b.self_attn, normed(x, b.input_layernorm)
            q, k, v = (p(h).unflatten(-1, (-1, 8)) for p in (a.q_proj, a.k_proj, a.v_proj))
            q, k = turned(q, places), turned(k, places)
            order = torch.arange(len(x))
            heads = []
            for head in range(4):
                scores = (q[:, head] @ k[:, head // 2].T / 8**0.5).where(order[:, None] >= order, float("-inf"))
                heads.append(scores.softmax(-1) @ v[:, head // 2])
            branch = a.o_proj(torch.cat(heads, dim=-1))
            middle = x + branch
            h = normed(middle, b.post_attention_layernorm)
            x = middle + b.mlp.down_proj(nn.functional.silu(b.mlp.gate_proj(h)) * b.mlp.up_proj(h))
            if layer in layers:
                n = len(x) - SYSTEM - QUESTION
                image = [SYSTEM + i for i in best(branch[SYSTEM : SYSTEM + n].norm(dim=-1).tolist(), keep)]
                stay = [*range(SYSTEM), *image, *range(SYSTEM + n, len(x))]
                x, places = x[stay], places[:, stay]
        results.append(made.module.lm_head(normed(x[-1], language.norm)))
    return torch.stack(results)


@pytest.mark.parametrize(("keep", "layers"), [(1.0, ()), (0.7, (1, 2)), (0.5, (2,))])
def test_image_tokens_are_dropped_as_written(
    checkpoint: tuple[str, Path], keep: float, layers: tuple[int, ...]
) -> None:
    kind, folder = checkpoint
    made = exact(folder)
    given = vlm_case(folder, pruning="dash", keep=keep, layers=layers)
    with torch.inference_mode():
        expected = reference(kind, made, keep, layers)
        for attention in (vanilla, flash):
            with pruning(made, dash, given, attention):
                out = call(made.module, made.inputs)
            torch.testing.assert_close(made.logits(out), expected, rtol=0, atol=1e-10)
    if layers:
        left = kept(kept(IMAGE, keep), keep) if len(layers) == 2 else kept(IMAGE, keep)
        assert out.past_key_values.layers[-1].keys.shape[2] == SYSTEM + left + QUESTION


def test_what_is_known_before_it_is_built(checkpoint: tuple[str, Path]) -> None:
    _, folder = checkpoint
    facts, made = hf.facts(f"hf:{folder}", size_of(folder)), hf.build(vlm_case(folder))
    assert (facts.depth, facts.tokens, facts.prefix, facts.head_dim) == (DEPTH, IMAGE, SYSTEM + QUESTION, 8)
    assert (len(made.sites), made.tokens, made.prefix, made.suffix) == (DEPTH, IMAGE, SYSTEM, QUESTION)
    ids = made.inputs["input_ids"]
    assert ((ids == 199).sum(1) == IMAGE).all() and (ids[:, SYSTEM : SYSTEM + IMAGE] == 199).all()
    for option in ({"frames": 4}, {"weights": "w"}):
        with pytest.raises(UsageError, match="does not apply"):
            hf.facts(f"hf:{folder}", **option)
    with pytest.raises(UsageError, match=r"takes images of 32 pixels only|takes images in steps of 16 pixels"):
        hf.facts(f"hf:{folder}", 40)


def test_pictures_are_fed_and_the_librarys_own_attention_is_there(checkpoint: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = checkpoint
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    made = hf.build(vlm_case(folder, input=str(tmp_path), dtype="bf16"))
    assert len(made.evaluation) == 2 and made.evaluation[1]["pixel_values"].dtype == torch.bfloat16
    rotary = made.module.model.language_model.rotary_emb
    assert rotary.inv_freq.dtype == torch.float32, "rounded frequencies would turn tokens by other angles"
    step = builder.eager_step(vlm_case(folder, attention="eager"), made)
    assert builder._verified(step).startswith("softmax ×") and eager.OFFERS.library


def test_patches_that_are_merged_lie_beside_each_other() -> None:
    pictures = tiny.pixels(2, 3, 16, 16)
    given = _packed(4, 2, 2, pictures)
    rows = iter(given["pixel_values"])
    for picture in pictures:
        for window_y, window_x in ((0, 0), (0, 8), (8, 0), (8, 8)):
            for y, x in ((0, 0), (0, 4), (4, 0), (4, 4)):
                patch = picture[:, window_y + y :, window_x + x :][:, :4, :4]
                assert torch.equal(next(rows), patch.unsqueeze(1).expand(3, 2, 4, 4).flatten()), "both frames alike"
    assert given["image_grid_thw"].tolist() == [[1, 4, 4]] * 2


def test_the_tower_is_a_model_of_its_own(checkpoint: tuple[str, Path]) -> None:
    """Llava's, with the weights that it has in the whole model; Qwen2-VL's is refused."""
    kind, folder = checkpoint
    name = f"hf:{folder}:tower"
    if kind != "llava":
        with pytest.raises(UsageError, match="merges neighbours and packs all images into one row"):
            hf.facts(name)
        return
    facts = hf.facts(name)
    assert (facts.depth, facts.tokens, facts.prefix, facts.weights) == (3, 16, 1, str(folder))
    made = hf.build(case(model=name, weights=facts.weights, image_size=32, batch=2))
    tower = hf.build(vlm_case(folder)).module.model.vision_tower.state_dict()
    assert tower.keys() == made.module.state_dict().keys()
    assert all(torch.equal(value, tower[key]) for key, value in made.module.state_dict().items())


def test_what_has_no_tower_is_refused(tmp_path: Path) -> None:
    import transformers as t

    t.ViTModel(t.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is no vision-language checkpoint; leave out :tower"):
        hf.facts(f"hf:{tmp_path}:tower")
