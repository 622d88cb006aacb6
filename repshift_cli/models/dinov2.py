"""DINOv2 backbones (arXiv 2304.07193), patch 14, with or without four register tokens (arXiv 2309.16588)."""

from __future__ import annotations

from typing import Any

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.inputs.preprocessing import Preprocessing

ALIASES = {
    "dinov2_s": {"width": 384, "depth": 12, "heads": 6, "registers": 0},
    "dinov2_b": {"width": 768, "depth": 12, "heads": 12, "registers": 0},
    "dinov2_l": {"width": 1024, "depth": 24, "heads": 16, "registers": 0},
    "dinov2_s_reg": {"width": 384, "depth": 12, "heads": 6, "registers": 4},
    "dinov2_b_reg": {"width": 768, "depth": 12, "heads": 12, "registers": 4},
    "dinov2_l_reg": {"width": 1024, "depth": 24, "heads": 16, "registers": 4},
}
IMAGES = Preprocessing(224, 256, "bicubic", whose="DINOv2's own")


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    size = ALIASES[name]
    shape: dict[str, Any] = {
        "hidden_size": size["width"],
        "num_hidden_layers": size["depth"],
        "num_attention_heads": size["heads"],
        "mlp_ratio": 4,
        "patch_size": 14,
        "image_size": image_size or 518,
        "attn_implementation": "sdpa",
    }
    if size["registers"]:
        config = Dinov2WithRegistersConfig(num_register_tokens=size["registers"], **shape)
        return Recipe(Dinov2WithRegistersModel, config)
    return Recipe(Dinov2Model, Dinov2Config(**shape))


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_recipe)
