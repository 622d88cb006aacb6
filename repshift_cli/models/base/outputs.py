"""What a model of unknown making puts out: logits of classes, logits of every token, or features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.base.transformers import pooled
from repshift_cli.records import UsageError, call

LOGITS, FEATURES = "logits", "features"


@dataclass(frozen=True)
class Reading:
    """How an output is read: `logits` gives (B, K) or None, `pooled` (B, C), `each` (B, N, K) or None, of all tokens.

    `what` says it in words. Logits of every token are compared at the last one, whose next token a decoder is for.
    """

    logits: Callable[[Any], Tensor | None]
    pooled: Callable[[Any], Tensor]
    each: Callable[[Any], Tensor] | None
    what: str


def reading_of(module: nn.Module, inputs: Any, entering: int, told: str | None = None) -> Reading:
    """The reading of a model's output, from one forward; `told` is what its owner says that it is.

    An output called `logits` holds logits. A bare tensor does where the last linear layer that ran put it out and its
    name, or a width of its own, says that it tells classes apart.
    """
    linear: list[tuple[nn.Module, Any]] = []

    def ran(m: nn.Module, args: Any, output: Any) -> None:
        linear[:] = [(m, output)]

    handles = [m.register_forward_hook(ran) for m in module.modules() if isinstance(m, nn.Linear)]
    try:
        with torch.inference_mode():
            output = call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = tensor_of(output)
    named = _named(output) is not None
    if found is None or told == FEATURES or not (told == LOGITS or named or _classifying(found, linear)):
        return Reading(lambda _: None, pooled, None, "features, compared by their cosine")
    if found.ndim == 3 and found.shape[1] == entering:
        return Reading(_last, _last, _each, f"logits of {found.shape[2]} for each token, compared at the last")
    if found.ndim < 2 or found.ndim > 3:
        raise UsageError(f"the model's logits are {tuple(found.shape)}, and (batch, classes) is needed")
    return Reading(_each, _each, None, f"logits of {found.shape[-1]} classes")


def tensor_of(output: Any) -> Tensor | None:
    """The output's logits, itself where it is a tensor, or the first of several."""
    value = _named(output)
    if value is None:
        value = output[0] if isinstance(output, (tuple, list)) and output else output
    return value if isinstance(value, Tensor) else None


def _named(output: Any) -> Any:
    return output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)


def _classifying(found: Tensor, linear: list[tuple[nn.Module, Any]]) -> bool:
    """Whether the last linear layer put the output out, and made another width of it than it was given."""
    if not linear:
        return False
    layer, out = linear[0]
    same = isinstance(out, Tensor) and out.shape == found.shape and torch.equal(out, found)
    return same and layer.out_features != layer.in_features


def _each(output: Any) -> Tensor:
    found = tensor_of(output)
    assert found is not None
    return found


def _last(output: Any) -> Tensor:
    return _each(output)[:, -1]
