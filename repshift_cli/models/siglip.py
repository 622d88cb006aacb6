"""SigLIP vision towers (arXiv 2303.15343), no class token, pooled by an attention head of their own."""

from __future__ import annotations

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.inputs.preprocessing import Preprocessing

ALIASES = {
    "siglip_b": {"width": 768, "inner": 3072, "depth": 12, "heads": 12, "patch": 16, "image": 224},
    "siglip_l": {"width": 1024, "inner": 4096, "depth": 24, "heads": 16, "patch": 16, "image": 256},
    "siglip_so400m": {"width": 1152, "inner": 4304, "depth": 27, "heads": 16, "patch": 14, "image": 384},
}
IMAGES = Preprocessing(224, None, "bicubic", (0.5,) * 3, (0.5,) * 3, whose="SigLIP's own")


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    size = ALIASES[name]
    config = SiglipVisionConfig(
        hidden_size=size["width"],
        intermediate_size=size["inner"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        patch_size=size["patch"],
        image_size=image_size or size["image"],
        attn_implementation="sdpa",
    )
    return Recipe(SiglipVisionModel, config, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_recipe)
