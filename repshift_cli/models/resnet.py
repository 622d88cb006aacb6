"""ResNet (arXiv 1512.03385), 1000 classes: a CNN, whose rows and columns are dropped between its stages.

The shift is D(stage(x), x), with x as the shortcut of the stage's first block gives it: the stage's input itself in
stage 1 of ResNet-18 and 34, its projection (1 x 1 convolution and norm, strided from stage 2 on) wherever a stage
changes the shape. In stage 1 of ResNet-50 only the channels change. See `base/stages.py`.
"""

from __future__ import annotations

import re
from typing import Any

from repshift_cli.models.base.stages import Stages, family
from repshift_cli.models.base.transformers import Recipe
from repshift_cli.models.inputs.preprocessing import Preprocessing
from repshift_cli.records import Site

ALIASES = {
    "resnet18": {"layer": "basic", "depths": [2, 2, 2, 2], "width": 64},
    "resnet34": {"layer": "basic", "depths": [3, 4, 6, 3], "width": 64},
    "resnet50": {"layer": "bottleneck", "depths": [3, 4, 6, 3], "width": 256},
}
IMAGES = Preprocessing(224, 256, "bilinear", whose="torchvision's for ResNet")
TORCHVISION = (
    (r"conv1\.(\w+)", "resnet.embedder.embedder.convolution.{}"),
    (r"bn1\.(\w+)", "resnet.embedder.embedder.normalization.{}"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.(\w+)", "resnet.encoder.stages.{}.layers.{}.layer.{}.convolution.{}"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", "resnet.encoder.stages.{}.layers.{}.layer.{}.normalization.{}"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.(\w+)", "resnet.encoder.stages.{}.layers.{}.shortcut.convolution.{}"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", "resnet.encoder.stages.{}.layers.{}.shortcut.normalization.{}"),
    (r"fc\.(\w+)", "classifier.1.{}"),
)
"""torchvision's names, and transformers' of the same weights; stages and convolutions count from 1 there."""


def halved(lines: int) -> int:
    """Rows behind a stride of 2 whose padding covers the edge: 7 -> 4."""
    return -(-lines // 2)


def sites(module: Any) -> tuple[Site, ...]:
    """The stages, each with the shortcut of its first block as the origin."""
    return tuple(Site(stage, origin=stage.layers[0].shortcut) for stage in module.resnet.encoder.stages)


def stages_of(config: Any, checkpoint: str | None = None) -> Stages:
    """A ResNet of transformers' configuration, with random weights or a checkpoint's."""
    from transformers import ResNetForImageClassification

    recipe = Recipe(ResNetForImageClassification, config, checkpoint, translated=from_torchvision, attention=None)
    return Stages(recipe, lambda pixels: halved(halved(pixels)), halved, sites)


def from_torchvision(name: str) -> str:
    """transformers' name of a weight of torchvision's or timm's ResNet; any other name is left as it is."""
    for pattern, path in TORCHVISION:
        if found := re.fullmatch(pattern, name):
            numbers = [int(n) - less for n, less in zip(found.groups()[:-1], (1, 0, 1), strict=False)]
            return path.format(*numbers, found.groups()[-1])
    return name


def _stages(name: str, size: int) -> Stages:
    from transformers import ResNetConfig

    shape = ALIASES[name]
    config = ResNetConfig(
        layer_type=shape["layer"],
        depths=shape["depths"],
        hidden_sizes=[shape["width"] * 2**stage for stage in range(4)],
        num_labels=1000,
    )
    return stages_of(config)


def preprocessing(name: str) -> Preprocessing:
    """As its authors prepare images."""
    return IMAGES


facts, build = family(_stages)
