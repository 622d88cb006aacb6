"""What the CNNs share: sites are stages, and tokens are the places of a grid that shrinks from stage to stage.

The shift is taken across a whole stage, s = D(stage(x), x) at every place of its output (Choi et al. 2025, arXiv
2508.00367, Table 6). The paper does not say what D is where a stage changes the channels or the resolution. Here x is
then what the stage's residual path begins with: the stage's input as the model itself brings it to the new shape, by
the projection in the first block's shortcut (ResNet) or by the downsampling in front of the first block (ConvNeXt).
Where the shape stays, that is the input itself, and the formula holds as printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch

from repshift_cli.models.base.subjects import subject_of
from repshift_cli.models.base.transformers import Recipe, _inputs, in_place, logits, pooled, weights_file
from repshift_cli.models.discovery import grids
from repshift_cli.models.discovery.blocks import Found
from repshift_cli.models.inputs.images import random_pixels
from repshift_cli.records import (
    REMOVALS,
    Case,
    Facts,
    Keep,
    Site,
    Subject,
    UsageError,
    dropped_share,
    keeps_of,
    lines_left,
)

SIZE = 224


@dataclass(frozen=True)
class Stages:
    """A CNN: its recipe, and the rows (as many columns) of its grids.

    `entering(image size)` are those of stage 1, `into(lines)` those that a later stage makes of its input's; `sites`
    finds the stages of the built module.
    """

    recipe: Recipe
    entering: Callable[[int], int]
    into: Callable[[int], int]
    sites: Callable[[Any], tuple[Site, ...]]

    def along(self, size: int, keep: Keep, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens at the input of stage 1 and after each cut: (3136, 2304, 400) at 224, keep 0.72, stages 1 and 2.

        UsageError where a stage gets too few to make anything of.
        """
        lines, keeps = self.entering(size), dict(zip(layers, keeps_of(keep, layers), strict=True))
        counts = [lines * lines]
        for stage in range(1, len(self.recipe.config.depths) + 1):
            before, lines = lines, self.into(lines) if stage > 1 else lines
            if not lines:
                raise UsageError(
                    f"stage {stage} cannot halve a grid of {before} x {before}; give a larger --image-size or --keep"
                )
            if stage in keeps:
                lines = lines_left(lines, *dropped_share(keeps[stage]))
                counts.append(lines * lines)
        return tuple(counts)


def family(stages: Callable[[str, int], Stages]) -> tuple[Callable[..., Facts], Callable[[Case], Subject]]:
    """The two functions that a family file offers, `facts` and `build`, from `stages(name, image size)`."""

    @lru_cache(maxsize=64)
    def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
        """Stages and the tokens that enter the first, by arithmetic."""
        _check(name, frames, weights)
        size = image_size or SIZE
        made = stages(name, size)
        if made.entering(size) < 2:
            raise UsageError(f"an image of {size} x {size} leaves {name} no grid to cut; give a larger --image-size")
        (tokens,) = made.along(size, 1.0, ())
        return Facts(
            depth=len(made.recipe.config.depths),
            tokens=tokens,
            prefix=0,
            image_size=size,
            weights=weights or made.recipe.checkpoint or "random",
            operations=("block",),
            attention=False,
            removals=REMOVALS,
            along=partial(made.along, size),
        )

    def build(case: Case) -> Subject:
        """The model and its inputs on the case's device, in the case's dtype."""
        size = case.image_size or SIZE
        made = stages(case.model, size)
        module, warnings = in_place(made.recipe, case)
        _, evaluation = _inputs(made.recipe, module, case)
        found = Found(made.sites(module), entering=made.entering(size) ** 2)
        units = made.recipe.units
        return subject_of(module, evaluation, found, units, logits, pooled, warnings=warnings, grid=True)

    return facts, build


def found_family(recipe_of: Callable[[str], Recipe]) -> tuple[Callable[..., Facts], Callable[[Case], Subject]]:
    """The same of CNNs whose stages nobody has written down: they are found in the model with random weights."""

    @lru_cache(maxsize=4)
    def staged(name: str, size: int) -> grids.Stages:
        recipe = recipe_of(name)
        shape = (1, getattr(recipe.config, "num_channels", 3), size, size)
        with torch.random.fork_rng(devices=[]):
            module = recipe.model(recipe.config).eval()
        with torch.device("meta"):
            sketch = recipe.model(recipe.config).eval(), {"pixel_values": torch.empty(*shape)}
        return grids.find_stages(name, module, {"pixel_values": random_pixels(shape, 0)}, sketch)

    def size_of(name: str, image_size: int | None) -> int:
        own = getattr(recipe_of(name).config, "image_size", None)
        return image_size or (own if isinstance(own, int) else SIZE)

    @lru_cache(maxsize=64)
    def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
        """Stages and the tokens that enter the first, from one forward."""
        _check(name, frames, weights)
        size = size_of(name, image_size)
        told = weights or recipe_of(name).checkpoint or "random"
        return replace(staged(name, size).facts, image_size=size, weights=told)

    def build(case: Case) -> Subject:
        """The model and its inputs on the case's device, in the case's dtype."""
        recipe, stages = recipe_of(case.model), staged(case.model, size_of(case.model, case.image_size))
        module, warnings = in_place(recipe, case)
        _, evaluation = _inputs(recipe, module, case)
        found = Found(stages.sites(module), entering=stages.facts.tokens)
        return subject_of(module, evaluation, found, recipe.units, logits, pooled, warnings=warnings, grid=True)

    return facts, build


def _check(name: str, frames: int | None, weights: str | None) -> None:
    if frames is not None:
        raise UsageError(f"{name} takes images: --frames does not apply to it")
    if weights is not None:
        weights_file(weights)
