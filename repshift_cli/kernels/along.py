"""What belongs to tokens and travels beside them (masks, rotary embeddings, position ids), cut like the tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def along(value: Any, name: str, tokens: int, prefix: int, positions: Tensor, spread: int = 0) -> Any:
    """`value` without the entries of dropped tokens; what has none is given back as it is.

    `tokens` entered the first block and `positions` (B or 1, k) are those still there, in order. A size of `tokens`
    (or of `tokens - prefix`, where prefix tokens have no entry) in the place of tokens tells what belongs to them: the
    last two dimensions of masks and biases (by `name`, or bool), the last of whole numbers and of one dimension, else
    the one before the last. What was shared by all samples becomes one copy per sample, with `spread` dimensions of
    size one behind the batch: (N, d) -> (B, k, d) or (B, 1, k, d). A spread of -1 says that everything was shared, also
    what looks like one entry per sample: (heads, N, d) -> (B, heads, k, d), of as many heads as samples.
    """
    if isinstance(value, (tuple, list)):
        return type(value)(along(v, name, tokens, prefix, positions, spread) for v in value)
    if isinstance(value, dict):
        return {key: along(v, name, tokens, prefix, positions, spread) for key, v in value.items()}
    if isinstance(value, Tensor):
        for dim in token_dims(value, name, tokens, prefix, len(positions)):
            rows = positions if value.shape[dim] == tokens else positions[:, prefix:] - prefix
            value = _take(value, dim, rows, spread)
    return value


def token_dims(value: Tensor, name: str, tokens: int, prefix: int, batch: int) -> tuple[int, ...]:
    """The dimensions of `value`, counted from its end, that count tokens."""
    sizes = (tokens, tokens - prefix)
    fits = [d for d in (-2, -1) if d >= -value.ndim and value.shape[d] in sizes]
    is_mask = value.dtype == torch.bool or "mask" in name or "bias" in name
    if value.ndim == 2 and -1 in fits and (not value.is_floating_point() or len(value) in (1, batch)):
        return (-2, -1) if is_mask and -2 in fits and len(value) != batch else (-1,)
    if is_mask or value.ndim < 2:
        return tuple(fits)
    return (-2,) if -2 in fits else ()


def _take(value: Tensor, dim: int, rows: Tensor, spread: int) -> Tensor:
    """The entries `rows` (B, k) of the dimension, per sample: (B | 1, ..., N, ...) -> (B, ..., k, ...)."""
    has_batch = value.ndim > 2 - (dim == -1) and len(value) in ((1, len(rows)) if spread >= 0 else (1,))
    if not has_batch:
        value = value[(None,) * (1 + max(0, spread) * value.is_floating_point())]
    shape = [len(rows)] + [1] * (value.ndim - 1)
    shape[dim] = rows.shape[1]
    return torch.take_along_dim(value, rows.view(shape), dim)
