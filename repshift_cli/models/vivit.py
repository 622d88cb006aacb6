"""ViViT (arXiv 2103.15691), joint attention: 32 frames in tubelets of 2, 3137 tokens at 224 with the class token."""

from __future__ import annotations

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.inputs.preprocessing import Preprocessing

ALIASES = {"vivit_b": {"width": 768, "depth": 12, "heads": 12}}
_CLASSES = 400  # Kinetics-400
_HALF = (0.5, 0.5, 0.5)  # its pixels go from -1 to 1
IMAGES = Preprocessing(224, 256, "bilinear", _HALF, _HALF, whose="ViViT's own")


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import VivitConfig, VivitForVideoClassification

    size = ALIASES[name]
    config = VivitConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        image_size=image_size or 224,
        num_frames=frames or 32,
        tubelet_size=[2, 16, 16],
        num_labels=_CLASSES,
        attn_implementation="sdpa",
    )
    return Recipe(VivitForVideoClassification, config, units="video", mean=_HALF, std=_HALF)


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_recipe)
