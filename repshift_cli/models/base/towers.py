"""The text tower of a checkpoint of images and texts (CLIP, SigLIP), and the space in which both are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repshift_cli.models.base.transformers import TORCH_DTYPES, Recipe, from_checkpoint
from repshift_cli.models.inputs.sentences import tokenizer_of
from repshift_cli.records import Case, UsageError

BOTH = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""Where transformers keeps both towers, by what configurations call them."""
AT_ONCE = 64


@dataclass(frozen=True)
class TextTower:
    """`embed` gives the features of texts (T, D); `project` takes those of the vision tower (B, C) to (B, D)."""

    embed: Callable[[Sequence[str]], Tensor]
    project: Callable[[Tensor], Tensor]


def text_tower(config: Any, checkpoint: str, case: Case) -> TextTower:
    """The text tower on the case's device and in its dtype, whole; UsageError where the checkpoint has none."""
    import transformers

    whole: Any
    whole, lacking = from_checkpoint(Recipe(getattr(transformers, BOTH[config.model_type]), config, checkpoint))
    if lacking:
        raise UsageError(f"{checkpoint} has not both towers: {lacking[0]}")
    whole.vision_model = None  # the subject is that
    whole = whole.eval().to(case.device, TORCH_DTYPES[case.dtype])
    tokenizer, most = tokenizer_of(checkpoint), config.text_config.max_position_embeddings

    def inputs(texts: Sequence[str]) -> dict[str, Tensor]:
        """CLIP's padded to the longest, with a mask; SigLIP's to its whole length without, as it was trained."""
        masked = config.model_type == "clip"
        padding = "longest" if masked else "max_length"
        found = tokenizer(list(texts), truncation=True, max_length=most, padding=padding, return_tensors="pt")
        return {name: found[name].to(case.device) for name in ("input_ids", *(["attention_mask"] if masked else []))}

    def embed(texts: Sequence[str]) -> Tensor:
        pieces = [texts[start : start + AT_ONCE] for start in range(0, len(texts), AT_ONCE)]
        with torch.inference_mode():
            return torch.cat([whole.get_text_features(**inputs(piece)).pooler_output for piece in pieces])

    @torch.inference_mode()
    def project(pooled: Tensor) -> Tensor:
        return whole.visual_projection(pooled) if config.model_type == "clip" else pooled

    return TextTower(embed, project)
