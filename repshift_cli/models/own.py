"""Your own model: `package.module:function`, which returns (module, inputs), or a TOML file that names it.

Where its blocks cannot be found, the function returns an adapter too, a dict of module paths, or the TOML file has it:

    model = "package.module:function"
    blocks = "encoder.layers"
    attention = "attn"
    prefix = 1

`output = "logits"` or `"features"` says what the model puts out, where that is not found right. `--batch` repeats the
function's inputs; `--data` puts images in the place of their pixels.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.base.outputs import reading_of
from repshift_cli.models.base.subjects import subject_of
from repshift_cli.models.base.transformers import TORCH_DTYPES, first_line
from repshift_cli.models.discovery.adapter import Adapter
from repshift_cli.models.discovery.blocks import BUILT_IN, Found, NoSites
from repshift_cli.models.discovery.grids import Stages, find_stages
from repshift_cli.models.discovery.located import Located, located
from repshift_cli.models.inputs.images import batches, load_images
from repshift_cli.records import Case, Facts, Subject, Unbuildable, UsageError

ALIASES: dict[str, object] = {}
FRESH = 67280421310721
"""The seed that torch has in a new process (c10::detail, default_rng_seed_val)."""


def facts(
    name: str,
    image_size: int | None = None,
    frames: int | None = None,
    weights: str | None = None,
    data: str | None = None,
) -> Facts:
    """What planning must know, from the model itself, which is kept for the first `build`."""
    for option, value in (("--image-size", image_size), ("--frames", frames), ("--weights", weights)):
        if value is not None:
            raise UsageError(f"{option} does not apply to {name}: your function makes the model and its inputs")
    made = _made(name)
    if data is not None:
        _pixels(name, made.inputs)
    batch = _batch(name, made.inputs)
    at = _found(name, made)
    if isinstance(at, Stages):
        return replace(at.facts, weights="own", batch=batch)
    return Facts(
        depth=len(at.found.sites),
        tokens=at.free,
        prefix=at.prefix + at.suffix,
        head_dim=at.head_dim,
        weights="own",
        batch=batch,
        operations=at.found.sites[0].operations,
        attention=at.attention,
    )


def build(case: Case) -> Subject:
    """The user's module and inputs on the case's device, floating point in the case's dtype."""
    made = _made(case.model)
    _made.cache_clear()  # it is converted in place: the next dtype starts from the function's own weights
    dtype = TORCH_DTYPES[case.dtype]
    module = made.module.to(device=case.device, dtype=dtype)
    given = _placed(made.inputs, case.device, dtype)
    at = _found(case.model, replace(made, inputs=given))
    told = None if made.adapter is None else made.adapter.output
    if isinstance(at, Stages):
        found, more = Found(at.sites(module), at.facts.tokens), dict[str, Any](grid=True)
    else:
        found, more = at.found, {"prefix": at.prefix, "suffix": at.suffix, "warnings": at.warnings}
    read = reading_of(module, _mapped(given, torch.clone), found.entering, told)
    return subject_of(
        module, _evaluation(case, given), found, "sample", read.logits, read.pooled, each=read.each, **more
    )


def _found(name: str, made: _Made) -> Located | Stages:
    """Its blocks and tokens, or a CNN's stages; a refusal that an adapter could mend shows the TOML file with it."""
    inputs = _mapped(made.inputs, torch.clone)
    try:
        return located(made.module, inputs, made.adapter)
    except NoSites as error:
        if made.adapter is None:
            with suppress(NoSites):
                return find_stages(name, made.module, inputs)
        if hint := BUILT_IN.get(type(made.module).__name__):
            raise NoSites(f"{error}; this architecture is built in: --model {hint}", error.looked) from error
        if made.adapter is not None or not error.adapter:
            raise
        lines = [f'model = "{name}"', *(f"{key} = {json.dumps(value)}" for key, value in error.adapter.items())]
        toml = "\n".join(f"    {line}" for line in lines)
        raise NoSites(f"{error}; this TOML file as --model would do:\n{toml}", error.looked, error.adapter) from error


# --- inputs -----------------------------------------------------------------------------------------------------------


def _evaluation(case: Case, given: Any) -> list[Any]:
    """Batches of the case's size: the function's own inputs, repeated as often as needed; with --data the images of a
    file or a folder in the place of their pixels."""
    own = _batch(case.model, given)
    rows = torch.arange(case.batch) % own

    def fitted(t: Tensor) -> Tensor:
        return t[rows.to(t.device)] if t.ndim and len(t) == own != case.batch else t

    if case.input in ("own", "random"):
        return [_mapped(given, fitted)]
    pixels = _pixels(case.model, given)
    groups = batches(load_images(case.input, pixels.shape[-1]).to(pixels), case.batch)
    return [_mapped(given, partial(_instead, pixels, group, fitted)) for group in groups]


def _instead(pixels: Tensor, group: Tensor, fitted: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    return group if t is pixels else fitted(t)


def _pixels(name: str, inputs: Any) -> Tensor:
    """The input that holds pictures, (B, 3, H, H); UsageError where there is none."""
    for value in _tensors(inputs):
        if value.is_floating_point() and value.ndim == 4 and value.shape[1] == 3 and value.shape[2] == value.shape[3]:
            return value
    raise UsageError(f"--data gives {name} pictures, and its inputs hold no pixels (batch, 3, size, size)")


@dataclass(frozen=True)
class _Made:
    module: nn.Module
    inputs: Any
    adapter: Adapter | None


@lru_cache(maxsize=8)
def _made(name: str) -> _Made:
    """What the function gives, with the adapter of the TOML file where `name` is one."""
    told = _from_toml(name) if name.endswith(".toml") else {"model": name}
    made = _called(told.pop("model"))
    if not (isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], nn.Module)):
        raise UsageError(
            f"{name}() must return (module, inputs), inputs a tensor, a dict of keyword tensors or a tuple"
        )
    module, inputs, *more = made
    inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
    if not isinstance(inputs, (dict, tuple)) or not _tensors(inputs):
        raise UsageError(f"{name}() must return inputs as a tensor, a dict of keyword tensors or a tuple of tensors")
    if more and not isinstance(more[0], dict):
        raise UsageError(f"{name}() must return its adapter, behind (module, inputs), as a dict of module paths")
    paths = {**more[0], **told} if more else told
    return _Made(module.eval(), inputs, Adapter.of(paths, name) if paths else None)


def _from_toml(place: str) -> dict[str, Any]:
    try:
        told = tomllib.loads(Path(place).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {place}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{place} is no TOML: {first_line(error)}") from error
    model = told.get("model")
    if not isinstance(model, str) or not all(part.strip() for part in model.partition(":")):
        raise UsageError(f"{place} must name your function: model = 'package.module:function'")
    return told


def _called(name: str) -> Any:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot import {name}: {first_line(error)}") from error
    try:
        with torch.random.fork_rng(devices=[]):  # else weights would depend on what other models have drawn before
            torch.manual_seed(FRESH)
            return function()
    except Exception as error:
        raise Unbuildable(f"{name}() failed: {type(error).__name__}: {first_line(error)}") from error


def _batch(name: str, inputs: Any) -> int:
    """The first dimension of the first tensor that has any."""
    sizes = [t.shape[0] for t in _tensors(inputs) if t.ndim]
    if not sizes:
        raise UsageError(f"{name}() must return inputs with a batch dimension; all of its tensors are single numbers")
    return sizes[0]


def _tensors(inputs: Any) -> list[Tensor]:
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return [v for v in values if isinstance(v, Tensor)]


def _placed(inputs: Any, device: str, dtype: torch.dtype) -> Any:
    return _mapped(inputs, lambda t: t.to(device, dtype) if t.is_floating_point() else t.to(device))


def _mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The inputs with every tensor changed."""

    def one(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    return {k: one(v) for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(map(one, inputs))
