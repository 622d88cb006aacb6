"""What belongs to tokens and travels beside them (masks, rotary embeddings, position ids), cut like the tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall


def along(
    value: Any, name: str, tokens: int, prefix: int, positions: Tensor, spread: int = 0, batch: int | None = None
) -> Any:
    """`value` without the entries of dropped tokens; what has none is given back as it is.

    `tokens` entered the first block and `positions` (B or 1, k) are those still there, in order; `batch` is B, where
    positions that all samples share do not tell it. A size of `tokens` (or of `tokens - prefix`, where prefix tokens
    have no entry) in the place of tokens tells what belongs to them, see `token_dims`. What was shared by all samples
    becomes one copy per row of `positions`, with `spread` dimensions of size one behind the batch: (N, d) and (1, N, d)
    -> (B, k, d) or (B, 1, k, d). A spread of -1 says that everything was shared, also what looks like one entry per
    sample: (heads, N, d) -> (B, heads, k, d), of as many heads as samples.

    Shapes do not tell everything (a batch as large as the tokens, a width as large): what this function makes of a
    block's arguments is tried on the block before it is believed (`models._companions`).
    """
    if isinstance(value, (tuple, list)):
        parts = [along(v, name, tokens, prefix, positions, spread, batch) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: along(v, name, tokens, prefix, positions, spread, batch) for key, v in value.items()}
    if isinstance(value, Tensor):
        batch = batch or len(positions)
        for dim in token_dims(value, name, tokens, prefix, batch):
            rows = positions if value.shape[dim] == tokens else positions[:, prefix:] - prefix
            value = _take(value, dim, rows, spread, batch)
    return value


def biased_along(call: AttentionCall, tokens: int, positions: Tensor) -> AttentionCall:
    """The call with a bias for every pair of all `tokens` cut to the pairs of those still there, each sample's own.

    Attention that makes its biases itself (relative positions) makes them for all: (1, H, N, N) -> (B, H, k, k).
    """
    bias = call.attn_mask
    if bias is None or bias.shape[-2:] != (tokens, tokens):
        return call
    return call._replace(attn_mask=along(bias, "bias", tokens, 0, positions, 0, len(call.query)))


def token_dims(value: Tensor, name: str, tokens: int, prefix: int, batch: int) -> tuple[int, ...]:
    """The dimensions of `value`, counted from its end, that count tokens.

    Masks and biases (bool, or by `name`): both of the last two, as far as their sizes fit; (B, N) and (1, N) only the
    last. Whole numbers, and whatever has one dimension: the last. Everything else (rotary embeddings): the one before
    the last, but the last of (B, N) and (1, N).
    """
    sizes = {n for n in (tokens, tokens - prefix) if n > 1}
    fits = tuple(d for d in (-2, -1) if d >= -value.ndim and value.shape[d] in sizes)
    is_mask = value.dtype == torch.bool or any(word in name for word in ("mask", "bias", "rel_pos"))
    whole = not value.is_floating_point() and value.dtype != torch.bool
    if value.ndim == 2 and -1 in fits and (len(value) in (1, batch) or (whole and not is_mask)):
        return (-1,)
    if is_mask or value.ndim < 2:
        return fits
    wanted = -1 if whole else -2
    return (wanted,) if wanted in fits else ()


def _take(value: Tensor, dim: int, rows: Tensor, spread: int, batch: int) -> Tensor:
    """The entries `rows` (B | 1, k) of the dimension, per sample: (B | 1, ..., N, ...) -> (B, ..., k, ...)."""
    has_batch = value.ndim > 2 - (dim == -1) and (len(value) == 1 or (len(value) == batch and spread >= 0))
    if not has_batch:
        value = value.unsqueeze(0)
    if spread == 1 and value.ndim == 3 and len(value) == 1 and dim == -2:
        value = value.unsqueeze(1)
    shape = [len(rows)] + [1] * (value.ndim - 1)
    shape[dim] = rows.shape[1]
    return torch.take_along_dim(value, rows.view(shape), dim)
