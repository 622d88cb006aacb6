"""Any ViT-like model of timm by name (extra `timm`), its class, distillation and register tokens protected; and CNNs.

A CNN is cut between its stages, where its blocks are residual ones (`discovery/grids.py`).
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repshift_cli.kernels.sdpa import heard_by
from repshift_cli.machine.packages import install
from repshift_cli.models.base.subjects import RANDOM_WEIGHTS, subject_of
from repshift_cli.models.base.torchvision import mend
from repshift_cli.models.base.transformers import TORCH_DTYPES, first_line, load_weights, pooled, weights_file
from repshift_cli.models.discovery.blocks import (
    Found,
    NoSites,
    find_sites,
    pattern,
    prefix_tokens,
    successive,
)
from repshift_cli.models.discovery.grids import Stages, find_stages
from repshift_cli.models.inputs.images import batches, load_images, random_pixels
from repshift_cli.models.inputs.preprocessing import Preprocessing, of_timm
from repshift_cli.records import Case, Facts, Subject, UsageError

ALIASES: dict[str, object] = {}
_MISSING = f"timm is not installed: {install('timm')}"


def unavailable(device: str) -> str | None:
    """Why no model of timm can be built here, or None."""
    return _MISSING if importlib.util.find_spec("timm") is None else None


@lru_cache(maxsize=64)
def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
    """What planning must know, from a copy without memory (meta device) and a copy of two blocks, which is run.

    A model whose class takes no `depth` is built whole instead. UsageError where tokens cannot be dropped.
    """
    if frames is not None:
        raise UsageError(f"{name} takes images: --frames does not apply to it")
    if weights is not None:
        weights_file(weights)
    whole = _whole(name, image_size)
    shape = _shape(whole, image_size)
    _check(name, whole, shape)
    side = shape[1] if shape[1] == shape[2] else None
    if _grid_of(whole, shape):
        return replace(_staged(name, image_size).facts, image_size=side, weights=weights or "random")
    sketch = _sketch(name, image_size)
    pixels = (random_pixels((2, *shape), 0),)
    found, calls = _sites(name, sketch, pixels)
    prefix = prefix_tokens(sketch)
    path = next(path for path, module in sketch.named_modules() if module is found.sites[0].block)
    siblings = whole.get_submodule(path.rpartition(".")[0]).children()
    return Facts(
        depth=sum(type(m) is type(found.sites[0].block) for m in siblings),
        tokens=found.entering - prefix,
        prefix=prefix,
        head_dim=calls[0].head_dim,
        image_size=side,
        weights=weights or "random",
        eager=bool(_fusing(whole)) and not found.biased,
        mask="relative position biases" if any(call.masked for call in calls) else None,
        operations=found.sites[0].operations,
    )


def build(case: Case) -> Subject:
    """The model and its inputs on the case's device, in the case's dtype, with its blocks found."""
    torch.manual_seed(case.seed)
    with torch.device(case.device):
        module = _model(case.model, case.image_size)
    warnings: tuple[str, ...] = ()
    if case.weights == "random":
        warnings = (RANDOM_WEIGHTS,)
    else:
        load_weights(module, case.weights)
    module = module.to(device=case.device, dtype=TORCH_DTYPES[case.dtype])
    evaluation = _inputs(module, case)
    whole = _whole(case.model, case.image_size)
    told: dict[str, Any] = {"prefix": prefix_tokens(module), "eager": partial(_unfused, module)}
    if _grid_of(whole, _shape(whole, case.image_size)):
        staged = _staged(case.model, case.image_size)
        found, told = Found(staged.sites(module), staged.facts.tokens), {"grid": True}
    else:
        found = find_sites(module, evaluation[0], undivided=True)
    classes = getattr(module, "num_classes", 0)
    return subject_of(
        module,
        evaluation,
        found,
        "img",
        logits=lambda output: output if classes else None,
        pooled=pooled,
        warnings=(*warnings, *found.warnings),
        **told,
    )


def preprocessing(name: str) -> Preprocessing:
    """As timm's data configuration of the pretrained weights says."""
    return of_timm(_whole(name, None).pretrained_cfg)


@lru_cache(maxsize=4)
def _whole(name: str, image_size: int | None) -> Any:
    """The model without memory (meta device)."""
    with torch.device("meta"):
        return _model(name, image_size)


def _model(name: str, image_size: int | None, **options: Any) -> Any:
    """The model without weights, in evaluation; its attention through torch's, which is where back ends are bound."""
    if unavailable("cpu"):
        raise UsageError(f"{name}: {_MISSING}")
    mend()
    import timm  # the library: imports are absolute here

    place = name.removeprefix("timm:")
    if not timm.is_model(place):
        near = difflib.get_close_matches(place, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UsageError(f"timm {timm.__version__} has no model {place!r}: {hint}timm.list_models() names all of them")
    default = timm.get_pretrained_cfg(place)
    if image_size is not None and (default is None or default.input_size[1:] != (image_size, image_size)):
        options["img_size"] = image_size
    try:
        module = timm.create_model(place, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        del options["img_size"]  # a class that cannot be told the size takes any
        module = timm.create_model(place, **options)
    for part in _fusing(module):
        part.fused_attn = True
    return module.eval()


def _fusing(module: nn.Module) -> list[Any]:
    """The modules that compute their attention by torch's function or, told otherwise, write it out."""
    return [part for part in module.modules() if hasattr(part, "fused_attn")]


@contextmanager
def _unfused(module: nn.Module) -> Iterator[None]:
    """Within it timm's attention is written out; afterwards it goes through torch's function again."""
    parts = _fusing(module)
    try:
        for part in parts:
            part.fused_attn = False
        yield
    finally:
        for part in parts:
            part.fused_attn = True


def _sketch(name: str, image_size: int | None) -> nn.Module:
    """The model with its first two blocks only, where its class takes `depth`, else the whole."""
    try:
        return _model(name, image_size, depth=2)
    except UsageError:
        raise
    except Exception:
        return _model(name, image_size)


def _shape(module: Any, image_size: int | None) -> tuple[int, int, int]:
    """(channels, height, width) of one image."""
    channels, height, width = module.pretrained_cfg["input_size"]
    return (channels, image_size or height, image_size or width)


def _check(name: str, module: Any, shape: tuple[int, int, int]) -> None:
    """UsageError where the image is no whole number of patches."""
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and any(side % step for side, step in zip(shape[1:], patch, strict=True)):
        raise UsageError(f"{name}: image size {shape[1]} is no multiple of the patch size {patch[0]}")


def _grid_of(module: Any, shape: tuple[int, int, int]) -> str | None:
    """The sizes of the features where they come out on a grid, by a model on the meta device; what cannot run there is
    left to the run of the blocks."""
    features = None
    with torch.inference_mode(), suppress(Exception):
        features = module.forward_features(torch.empty(1, *shape, device="meta"))
    return "x".join(map(str, features.shape[1:])) if isinstance(features, Tensor) and features.ndim == 4 else None


@lru_cache(maxsize=4)
def _staged(name: str, image_size: int | None) -> Stages:
    """The stages of a CNN, from one forward of the model with random weights; NoSites where it has none."""
    whole = _whole(name, image_size)
    shape = _shape(whole, image_size)
    with torch.random.fork_rng(devices=[]):
        module = _model(name, image_size)
    try:
        sketch = whole, (torch.empty(1, *shape, device="meta"),)
        return find_stages(name, module, (random_pixels((1, *shape), 0),), sketch)
    except NoSites as error:
        raise NoSites(
            f"{name} lays its tokens on a grid ({_grid_of(whole, shape)} at its end), which convolutions or windows "
            f"need whole, so none can be dropped: {error}",
            error.looked,
        ) from error


class _Call(NamedTuple):
    """One call of torch's attention in the first block."""

    head_dim: int
    masked: bool


def _sites(name: str, module: nn.Module, pixels: Any) -> tuple[Found, list[_Call]]:
    """The blocks, one behind the other through the whole model, and their head dim; NoSites with the reason else."""
    calls: list[_Call] = []
    try:
        with heard_by(lambda call: calls.append(_Call(call.query.shape[-1], call.attn_mask is not None))):
            found = find_sites(module, pixels, undivided=True)
    except NoSites as error:
        raise NoSites(f"{name}: no token can be dropped. {first_line(error)}", error.looked) from error
    blocks = [site.block for site in found.sites]
    kind, where = type(blocks[0]), pattern(module, blocks)
    others = sum(type(m) is kind for m in module.modules()) - len(blocks)
    if others:
        raise NoSites(
            f"{name} has {others} more blocks ({kind.__name__}) than the {len(blocks)} that follow each other: stages "
            "or branches between which it needs all tokens of its grid, so none can be dropped",
            [(where, f"there are {others} more of them elsewhere")],
        )
    if not successive(module, blocks, pixels):
        reason = "do not hand all tokens on to each other"
        raise NoSites(f"{name}: its blocks ({kind.__name__}) {reason}, one by one", [(where, f"they {reason}")])
    if not calls:
        raise NoSites(
            f"{name}: its blocks ({kind.__name__}) compute their attention themselves, not by torch's "
            "scaled_dot_product_attention, so no back end can stand in for it",
            [(where, "they compute their attention themselves")],
        )
    return found, calls


def _inputs(module: Any, case: Case) -> tuple[tuple[Tensor], ...]:
    """Batches of one shape: random pixels, or every image given, normalised as the model's own configuration says."""
    shape, config = _shape(module, case.image_size), module.pretrained_cfg
    if case.input == "random":
        groups = [random_pixels((case.batch, *shape), case.seed)]
    elif shape[1] != shape[2]:
        raise UsageError(f"{case.model} takes images of {shape[1]}x{shape[2]}; --data cuts squares: name --image-size")
    else:
        groups = batches(load_images(case.input, shape[1], config["mean"], config["std"]), case.batch)
    return tuple((group.to(case.device, TORCH_DTYPES[case.dtype]),) for group in groups)
