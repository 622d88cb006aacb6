"""VideoMAE (arXiv 2203.12602): 16 frames in tubelets of 2, 1568 tokens at 224, no class token, mean pooled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.inputs.preprocessing import Preprocessing

ALIASES = {
    "videomae_b": {"width": 768, "depth": 12, "heads": 12},
    "videomae_l": {"width": 1024, "depth": 24, "heads": 16},
}
_CLASSES = 400  # Kinetics-400
IMAGES = Preprocessing(224, 224, "bilinear", whose="VideoMAE's own")


def recipe_of(
    model: type, size: Mapping[str, int], image_size: int | None, frames: int, tubelet: int, **more: Any
) -> Recipe:
    """The recipe of an encoder in VideoMAE's shape: `tubelet` frames and 16 x 16 pixels make a token."""
    from transformers import VideoMAEConfig

    config = VideoMAEConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        patch_size=16,
        image_size=image_size or 224,
        num_frames=frames,
        tubelet_size=tubelet,
        attn_implementation="sdpa",
        **more,
    )
    return Recipe(model, config, units="video", prepare=place_positions)


def place_positions(module: Any) -> None:
    """Move the fixed position table, a plain tensor that .to() leaves on the CPU, to the weights' device and dtype.

    Otherwise every forward would copy it from host memory, which is slow and cannot be captured in a CUDA graph.
    """
    weight = next(module.parameters())
    for part in module.modules():
        table = vars(part).get("position_embeddings")
        if isinstance(table, Tensor):
            part.position_embeddings = table.to(weight.device, weight.dtype)


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import VideoMAEForVideoClassification

    return recipe_of(
        VideoMAEForVideoClassification, ALIASES[name], image_size, frames or 16, tubelet=2, num_labels=_CLASSES
    )


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_recipe)
