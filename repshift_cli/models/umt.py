"""UMT video encoders (arXiv 2303.16058) as VideoMAE with tubelet 1: no class token, frames x 196 tokens at 224."""

from __future__ import annotations

from typing import Any

from repshift_cli.models._transformers import Recipe, family

ALIASES = {
    "umt_b": {"width": 768, "depth": 12, "heads": 12},
    "umt_l": {"width": 1024, "depth": 24, "heads": 16},
}


def _recipe(name: str, image_size: int | None, frames: int | None) -> Recipe:
    from transformers import VideoMAEConfig, VideoMAEModel

    size = ALIASES[name]
    config = VideoMAEConfig(
        hidden_size=size["width"],
        intermediate_size=4 * size["width"],
        num_hidden_layers=size["depth"],
        num_attention_heads=size["heads"],
        patch_size=16,
        image_size=image_size or 224,
        num_frames=frames or 12,
        tubelet_size=1,
        attn_implementation="sdpa",
    )
    return Recipe(VideoMAEModel, config, units="video", prepare=_place_positions)


def _place_positions(module: Any) -> None:
    """Move the fixed position table, a plain tensor that .to() leaves on the CPU, to the weights' device and dtype.

    Otherwise every forward would copy it from host memory, which is slow and cannot be captured in a CUDA graph.
    """
    weight = next(module.parameters())
    embeddings = module.embeddings
    embeddings.position_embeddings = embeddings.position_embeddings.to(weight.device, weight.dtype)


facts, build = family(_recipe)
