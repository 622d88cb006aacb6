"""Vision Mamba (arXiv 2401.09417): bidirectional state space blocks, the class token in the middle of the patches."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.scan import scan_named
from repshift_cli.models.base.subjects import RANDOM_WEIGHTS, subject_of
from repshift_cli.models.base.transformers import TORCH_DTYPES, load_weights, weights_file
from repshift_cli.models.base.vim import VisionMamba
from repshift_cli.models.discovery.blocks import find_sites
from repshift_cli.models.inputs.images import batches, load_images, random_pixels
from repshift_cli.records import Case, Facts, Subject, UsageError

ALIASES = {
    "vim_t": {"width": 192, "depth": 24},
    "vim_s": {"width": 384, "depth": 24},
}
PATCH_SIZE = 16


@lru_cache(maxsize=64)
def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
    """Depth, tokens and the like of a model, from its sizes; the class token is the protected one."""
    if frames is not None:
        raise UsageError(f"{name} takes images: --frames does not apply to it")
    if weights is not None:
        weights_file(weights)
    size = image_size or 224
    if size % PATCH_SIZE:
        raise UsageError(f"image size {size} is no multiple of the patch size {PATCH_SIZE}")
    return Facts(
        depth=ALIASES[name]["depth"],
        tokens=(size // PATCH_SIZE) ** 2,
        prefix=1,
        row=False,
        image_size=size,
        weights=weights or "random",
        operations=("attention", "block"),
        attention=False,
    )


def build(case: Case) -> Subject:
    """The model and its inputs on the case's device, in the case's dtype, with its blocks found."""
    module, warnings = _module(case)
    evaluation = tuple({"pixel_values": images} for images in _images(case))
    found = find_sites(module, evaluation[0], scanning=True)
    said = (*warnings, scan_named(evaluation[0]["pixel_values"]))
    return subject_of(module, evaluation, found, "img", itself, itself, central=1, warnings=said)


def itself(output: Any) -> Tensor:
    """(B, classes): the output is the logits."""
    return output


def _module(case: Case) -> tuple[VisionMamba, tuple[str, ...]]:
    """The model in its place, and what must be said of its weights."""
    torch.manual_seed(case.seed)
    with torch.device(case.device):
        module = VisionMamba(**ALIASES[case.model], image_size=case.image_size or 224, patch_size=PATCH_SIZE)
    warnings: tuple[str, ...] = ()
    if case.weights == "random":
        warnings = (RANDOM_WEIGHTS,)
    else:
        load_weights(module, case.weights)
    return module.eval().to(device=case.device, dtype=TORCH_DTYPES[case.dtype]), warnings


def _images(case: Case) -> list[Tensor]:
    """Batches (B, 3, H, W): what is timed, first, and all that fidelity is taken on."""
    size = case.image_size or 224
    if case.input == "random":
        groups = [random_pixels((case.batch, 3, size, size), case.seed)]
    else:
        groups = batches(load_images(case.input, size), case.batch)
    return [g.to(case.device, TORCH_DTYPES[case.dtype]) for g in groups]
