"""DeiT with class and distillation token (arXiv 2012.12877), two classifiers averaged, 1000 classes."""

from __future__ import annotations

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.inputs.preprocessing import Preprocessing

ALIASES = {
    "deit_t_distilled": {"width": 192, "heads": 3},
    "deit_s_distilled": {"width": 384, "heads": 6},
    "deit_b_distilled": {"width": 768, "heads": 12},
}
IMAGES = Preprocessing(224, 256, "bicubic", whose="DeiT's own")


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    size = ALIASES[name]
    config = DeiTConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=12,
        num_attention_heads=size["heads"],
        patch_size=16,
        image_size=image_size or 224,
        num_labels=1000,
        attn_implementation="sdpa",
    )
    return Recipe(DeiTForImageClassificationWithTeacher, config)


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_recipe)
