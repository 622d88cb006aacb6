"""What vision-language checkpoints share (Llava, Qwen2-VL): text around an image, whose tokens alone may be dropped.

The vision tower runs whole; `--layers` counts the language model's blocks. A prompt is SYSTEM tokens of text, the
image's, and QUESTION tokens of text, as LLaVA-1.5's (arXiv 2310.03744) in `llava_7b`; text is random ids and always
stays. Time, memory and MACs are those of the whole forward, tower included.

Tokens are not dropped inside the tower: what the projector makes of it must be as many features as the prompt has
places for them, and Qwen2-VL's tower merges 2 x 2 neighbours and packs all images into one row. Llava's tower is a
model of its own under `hf:NAME:tower`, beside the whole one in the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.base.decoder import next_logits
from repshift_cli.models.base.subjects import subject_of
from repshift_cli.models.base.transformers import (
    TORCH_DTYPES,
    Recipe,
    eager_attention,
    from_checkpoint,
    restore_frequencies,
)
from repshift_cli.models.discovery.blocks import Found, find_sites
from repshift_cli.models.inputs.images import IMAGENET_MEAN, IMAGENET_STD, batches, load_images, random_pixels
from repshift_cli.records import Case, Facts, Subject, UsageError

SYSTEM, QUESTION = 35, 29
TOWERS_KEYS = {r"^(model\.)?vision_tower\.": ""}
"""From the names of a checkpoint's weights to those of its tower: a pattern, and what stands in its place."""
TEXT_IS_RANDOM = "the text around the image is random tokens; fidelity is that of the token after them"


@dataclass(frozen=True)
class Seeing:
    """One checkpoint: its configuration, its image size in pixels and the tokens that an image becomes.

    `image_inputs(pixels)` makes of pictures (B, 3, H, H) what the tower is given.
    """

    model: type
    config: Any
    checkpoint: str
    image_size: int
    image_tokens: int
    image_inputs: Callable[[Tensor], dict[str, Tensor]]
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


def family(seeing: Callable[[str, int | None], Seeing]) -> tuple[Callable[..., Facts], Callable[[Case], Subject]]:
    """The two functions every family file offers, `facts` and `build`, from a model's name to its checkpoint."""

    def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
        """Depth, tokens and the like, from the configuration alone."""
        if frames is not None or weights is not None:
            option = "--frames" if frames is not None else "--weights"
            raise UsageError(f"{option} does not apply to {name}, which is a checkpoint and takes an image")
        made = seeing(name, image_size)
        text = made.config.text_config
        return Facts(
            depth=text.num_hidden_layers,
            tokens=made.image_tokens,
            prefix=SYSTEM + QUESTION,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            image_size=made.image_size,
            weights=made.checkpoint,
            eager=True,
            causal=True,
        )

    def build(case: Case) -> Subject:
        """The model, its pictures and the text around them, on the case's device and in its dtype."""
        made = seeing(case.model, case.image_size)
        module, warnings = from_checkpoint(Recipe(made.model, made.config, made.checkpoint))
        module = module.eval().to(device=case.device, dtype=TORCH_DTYPES[case.dtype])
        restore_frequencies(module)
        evaluation = [_prompt(made, case, pictures) for pictures in _pictures(made, case)]
        found = _found(module, evaluation[0])
        return subject_of(
            module,
            evaluation,
            found,
            "prompt",
            next_logits,
            next_logits,
            prefix=SYSTEM,
            suffix=QUESTION,
            warnings=(
                *warnings,
                TEXT_IS_RANDOM,
            ),
            eager=partial(eager_attention, module),
        )

    return facts, build


def _pictures(made: Seeing, case: Case) -> list[Tensor]:
    """Batches (B, 3, H, H): what is timed, first, and all that fidelity is taken on."""
    if case.input == "random":
        return [random_pixels((case.batch, 3, made.image_size, made.image_size), case.seed)]
    return batches(load_images(case.input, made.image_size, made.mean, made.std), case.batch)


def _prompt(made: Seeing, case: Case, pictures: Tensor) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(case.seed)
    image = made.config.image_token_id
    words = min(image, made.config.text_config.vocab_size, 1000)  # ids below any special one
    text = torch.randint(words, (case.batch, SYSTEM + QUESTION), generator=generator)
    places = torch.full((case.batch, made.image_tokens), image)
    ids = torch.cat((text[:, :SYSTEM], places, text[:, SYSTEM:]), dim=1)
    tower = made.image_inputs(pictures.to(TORCH_DTYPES[case.dtype]))
    given = {"input_ids": ids, "mm_token_type_ids": (ids == image).int(), **tower}
    if "image_grid_thw" not in tower:
        del given["mm_token_type_ids"]  # only positions in three directions ask for it
    return {name: t.to(case.device) for name, t in given.items()} | {"use_cache": True, "logits_to_keep": 1}


class _Given(Exception):
    """Ends the forward where the language model begins."""


def _found(module: Any, inputs: dict[str, Any]) -> Found:
    """The language model's blocks, from what the whole model gives it."""
    language = module.model.language_model
    given: list[dict[str, Any]] = []

    def begin(m: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given.append(kwargs)
        raise _Given

    handle = language.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        with torch.inference_mode():
            module(**{**inputs, "use_cache": False})
    except _Given:
        pass
    finally:
        handle.remove()
    return find_sites(language, given[0])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def llava(model: type, config: Any, place: str, image_size: int | None, mean: Any, std: Any) -> Seeing:
    """Llava: a CLIP or SigLIP tower of one image size, its class token left out (`default`) or kept (`full`)."""
    vision = config.vision_config
    if image_size not in (None, vision.image_size):
        raise UsageError(f"{place} takes images of {vision.image_size} pixels only; leave out --image-size")
    kept = config.vision_feature_select_strategy != "default"
    has_class = vision.model_type.startswith("clip")
    tokens = (vision.image_size // vision.patch_size) ** 2 + (has_class and kept) - (not has_class and not kept)
    return Seeing(model, config, place, vision.image_size, tokens, _as_they_are, mean, std)


def _as_they_are(pictures: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": pictures}


QWEN_IMAGE = 448


def qwen2_vl(model: type, config: Any, place: str, image_size: int | None, mean: Any, std: Any) -> Seeing:
    """Qwen2-VL: images of any size in whole windows of merged patches; a still picture is two equal frames."""
    vision = config.vision_config
    window = vision.patch_size * vision.spatial_merge_size
    size = image_size or QWEN_IMAGE // window * window
    if size % window:
        raise UsageError(f"{place} takes images in steps of {window} pixels; {size} is none")
    pack = partial(_packed, vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    return Seeing(model, config, place, size, (size // window) ** 2, pack, mean, std)


def _packed(patch: int, frames: int, merge: int, pictures: Tensor) -> dict[str, Tensor]:
    """Patches of all pictures in one row, (B h w, 3 frames patch^2), those that are merged beside each other, as
    transformers' image processor packs them."""
    batch, channels, height, _ = pictures.shape
    side = height // patch
    grid = pictures.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, h, w, patch, patch)
    grid = grid.reshape(batch, channels, side // merge, merge, side // merge, merge, patch, patch)
    rows = grid.permute(0, 2, 4, 3, 5, 1, 6, 7).reshape(batch * side * side, channels, 1, patch * patch)
    return {
        "pixel_values": rows.expand(-1, -1, frames, -1).reshape(len(rows), -1).contiguous(),
        "image_grid_thw": torch.tensor([[1, side, side]] * batch),
    }


KINDS = {"llava": llava, "qwen2_vl": qwen2_vl}
"""By what their configurations call them."""
