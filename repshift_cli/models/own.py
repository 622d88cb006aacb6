"""Your own model: `package.module:function`, a function without arguments that returns (module, inputs)."""

from __future__ import annotations

import importlib
import os
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models._structure import find_sites, prefix_tokens
from repshift_cli.models._transformers import TORCH_DTYPES, first_line, logits, pooled
from repshift_cli.records import Case, Facts, Subject, UsageError

ALIASES: dict[str, object] = {}


def facts(name: str, image_size: int | None = None, frames: int | None = None, weights: str | None = None) -> Facts:
    """What planning must know, from the model itself, which is kept for the first `build`."""
    for option, value in (("--image-size", image_size), ("--frames", frames), ("--weights", weights)):
        if value is not None:
            raise UsageError(f"{option} does not apply to {name}: your function makes the model and its inputs")
    module, inputs = _made(name)
    batch = _batch(name, inputs)
    found = find_sites(module, inputs)
    prefix = prefix_tokens(module)
    return Facts(
        depth=len(found.sites),
        tokens=found.entering - prefix,
        prefix=prefix,
        weights="own",
        batch=batch,
    )


def build(case: Case) -> Subject:
    """The user's module and inputs on the case's device, floating point in the case's dtype."""
    if case.input not in ("own", "random"):
        raise UsageError(f"--data does not apply to {case.model}: your function makes the inputs")
    module, inputs = _made(case.model)
    _made.cache_clear()  # it is converted in place: the next dtype starts from the function's own weights
    dtype = TORCH_DTYPES[case.dtype]
    module = module.to(device=case.device, dtype=dtype)
    inputs = _placed(inputs, case.device, dtype)
    found = find_sites(module, inputs)
    prefix = prefix_tokens(module)
    return Subject(
        module=module,
        inputs=inputs,
        evaluation=(inputs,),
        sites=found.sites,
        companions=found.companions,
        spread=found.spread,
        prefix=prefix,
        tokens=found.entering - prefix,
        units="sample",
        logits=logits,
        pooled=pooled,
    )


@lru_cache(maxsize=8)
def _made(name: str) -> tuple[nn.Module, Any]:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"cannot import {name}: {first_line(error)}") from error
    try:
        made = function()
    except Exception as error:
        raise UsageError(f"{name}() failed: {type(error).__name__}: {first_line(error)}") from error
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise UsageError(f"{name}() must return (module, inputs), inputs a dict of keyword tensors or a tuple")
    module, inputs = made
    if not isinstance(inputs, (dict, tuple)) or not _tensors(inputs):
        raise UsageError(f"{name}() must return inputs as a dict of keyword tensors or a tuple of tensors")
    return module.eval(), inputs


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
