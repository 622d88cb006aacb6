"""ConvNeXt (arXiv 2201.03545), 1000 classes: a CNN, whose rows and columns are dropped between its stages.

The shift is D(stage(x), x), with x as it enters the stage's first block: the stage's input in stage 1, the downsampled
one later. See `base/stages.py`. A stage's downsampling takes 2 x 2 places without padding, so of an odd grid the last
row and column fall off there: an even number of lines after a cut wastes none (keep 0.72 leaves 48 of 56 and 20 of 24).
"""

from __future__ import annotations

from typing import Any

from repshift_cli.models.base.stages import Stages, family
from repshift_cli.models.base.transformers import Recipe
from repshift_cli.models.inputs.preprocessing import Preprocessing
from repshift_cli.records import Site

ALIASES = {
    "convnext_t": {"depths": [3, 3, 9, 3], "width": 96},
    "convnext_s": {"depths": [3, 3, 27, 3], "width": 96},
    "convnext_b": {"depths": [3, 3, 27, 3], "width": 128},
}
IMAGES = Preprocessing(224, 256, "bicubic", whose="ConvNeXt's own")


def sites(module: Any) -> tuple[Site, ...]:
    """The stages; their origin is what downsamples, where there is something."""
    stages = module.convnext.encoder.stages
    return tuple(Site(stage, origin=next(reversed(stage.downsampling_layer), None)) for stage in stages)


def stages_of(config: Any, checkpoint: str | None = None) -> Stages:
    """A ConvNeXt of transformers' configuration, with random weights or a checkpoint's."""
    from transformers import ConvNextForImageClassification

    recipe = Recipe(ConvNextForImageClassification, config, checkpoint, attention=None)
    return Stages(recipe, lambda pixels: pixels // config.patch_size, lambda lines: lines // 2, sites)


def _stages(name: str, size: int) -> Stages:
    from transformers import ConvNextConfig

    shape = ALIASES[name]
    config = ConvNextConfig(
        depths=shape["depths"],
        hidden_sizes=[shape["width"] * 2**stage for stage in range(4)],
        image_size=size,
        num_labels=1000,
    )
    return stages_of(config)


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_stages)
