"""Vision Transformer (arXiv 2010.11929) and DeiT without distillation token (arXiv 2012.12877), 1000 classes."""

from __future__ import annotations

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.inputs.preprocessing import Preprocessing

ALIASES = {
    "vit_t": {"width": 192, "depth": 12, "heads": 3, "patch": 16},
    "vit_s": {"width": 384, "depth": 12, "heads": 6, "patch": 16},
    "vit_b": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
    "vit_l": {"width": 1024, "depth": 24, "heads": 16, "patch": 16},
    "vit_h": {"width": 1280, "depth": 32, "heads": 16, "patch": 14},
    "deit_t": {"width": 192, "depth": 12, "heads": 3, "patch": 16},
    "deit_s": {"width": 384, "depth": 12, "heads": 6, "patch": 16},
    "deit_b": {"width": 768, "depth": 12, "heads": 12, "patch": 16},
}
IMAGES = Preprocessing(224, 256, "bicubic", whose="DeiT's own")


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import ViTConfig, ViTForImageClassification

    size = ALIASES[name]
    config = ViTConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        patch_size=size["patch"],
        image_size=image_size or 224,
        num_labels=1000,
        attn_implementation="sdpa",
    )
    return Recipe(ViTForImageClassification, config)


def preprocessing(name: str) -> Preprocessing | None:
    """As the authors of DeiT prepare images; ViT has been trained in several ways."""
    return IMAGES if name.startswith("deit") else None


facts, build = family(_recipe)
