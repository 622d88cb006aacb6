"""UMT video encoders (arXiv 2303.16058) as VideoMAE with tubelet 1: no class token, frames x 196 tokens at 224."""

from __future__ import annotations

from repshift_cli.models.base.transformers import Recipe, family
from repshift_cli.models.videomae import recipe_of

ALIASES = {
    "umt_b": {"width": 768, "depth": 12, "heads": 12},
    "umt_l": {"width": 1024, "depth": 24, "heads": 16},
}


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import VideoMAEModel

    return recipe_of(VideoMAEModel, ALIASES[name], image_size, frames or 12, tubelet=1)


facts, build = family(_recipe)
