"""CLIP vision towers (arXiv 2103.00020), class token."""

from __future__ import annotations

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.inputs.preprocessing import Preprocessing

ALIASES = {
    "clip_b32": {"width": 768, "depth": 12, "heads": 12, "patch": 32, "image": 224},
    "clip_b": {"width": 768, "depth": 12, "heads": 12, "patch": 16, "image": 224},
    "clip_l": {"width": 1024, "depth": 24, "heads": 16, "patch": 14, "image": 224},
    "clip_l_336": {"width": 1024, "depth": 24, "heads": 16, "patch": 14, "image": 336},
}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGES = Preprocessing(224, 224, "bicubic", MEAN, STD, whose="CLIP's own")


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    size = ALIASES[name]
    config = CLIPVisionConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        patch_size=size["patch"],
        image_size=image_size or size["image"],
        attn_implementation="sdpa",
    )
    return Recipe(CLIPVisionModel, config, mean=MEAN, std=STD)


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_recipe)
