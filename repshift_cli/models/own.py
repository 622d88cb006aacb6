"""Your own model: `package.module:function`, which returns (module, inputs), or a TOML file that names it.

Where its blocks cannot be found, the function returns an adapter too, a dict of module paths, or the TOML file has it:

    model = "package.module:function"
    blocks = "encoder.layers"
    attention = "attn"
    prefix = 1
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.base.subjects import subject_of
from repshift_cli.models.base.transformers import TORCH_DTYPES, first_line, logits, pooled
from repshift_cli.models.discovery.adapter import Adapter, named_sites
from repshift_cli.models.discovery.blocks import Found, find_sites, prefix_tokens
from repshift_cli.records import Case, Facts, Subject, UsageError

ALIASES: dict[str, object] = {}


def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
    """What planning must know, from the model itself, which is kept for the first `build`."""
    for option, value in (("--image-size", image_size), ("--frames", frames), ("--weights", weights)):
        if value is not None:
            raise UsageError(f"{option} does not apply to {name}: your function makes the model and its inputs")
    made = _made(name)
    batch = _batch(name, made.inputs)
    found, prefix, suffix = _located(name, made.module, made.inputs, made.adapter)
    return Facts(
        depth=len(found.sites),
        tokens=found.entering - prefix - suffix,
        prefix=prefix + suffix,
        weights="own",
        batch=batch,
        operations=found.sites[0].operations,
    )


def build(case: Case) -> Subject:
    """The user's module and inputs on the case's device, floating point in the case's dtype."""
    if case.input not in ("own", "random"):
        raise UsageError(f"--data does not apply to {case.model}: your function makes the inputs")
    made = _made(case.model)
    _made.cache_clear()  # it is converted in place: the next dtype starts from the function's own weights
    dtype = TORCH_DTYPES[case.dtype]
    module = made.module.to(device=case.device, dtype=dtype)
    inputs = _placed(made.inputs, case.device, dtype)
    found, prefix, suffix = _located(case.model, module, inputs, made.adapter)
    return subject_of(
        module, (inputs,), found, "sample", logits, pooled, prefix=prefix, suffix=suffix, warnings=found.warnings
    )


def _located(name: str, module: nn.Module, inputs: Any, adapter: Adapter | None) -> tuple[Found, int, int]:
    """The blocks, and the numbers of leading and of trailing tokens that stay."""
    prefix, suffix = prefix_tokens(module), 0
    if adapter is None:
        found = find_sites(module, inputs)
    else:
        prefix, suffix = prefix if adapter.prefix is None else adapter.prefix, adapter.suffix
        found = named_sites(module, inputs, adapter, prefix)
    if prefix + suffix >= found.entering:
        raise UsageError(f"{name}: {prefix + suffix} of {found.entering} tokens are protected, so none can be dropped")
    return found, prefix, suffix


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
        raise UsageError(f"{name}() must return (module, inputs), inputs a dict of keyword tensors or a tuple")
    module, inputs, *more = made
    if not isinstance(inputs, (dict, tuple)) or not _tensors(inputs):
        raise UsageError(f"{name}() must return inputs as a dict of keyword tensors or a tuple of tensors")
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
        return function()
    except Exception as error:
        raise UsageError(f"{name}() failed: {type(error).__name__}: {first_line(error)}") from error


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
    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return {k: place(v) for k, v in inputs.items()} if isinstance(inputs, dict) else tuple(map(place, inputs))
