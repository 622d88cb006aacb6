"""The cut in one pass: only kept rows are read, added where a branch is given, and written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from repshift_cli.kernels import launches

ROWS = 4
COLUMNS = 1024


def cut(hidden: Tensor, branch: Tensor | None, prefix: int, indices: Tensor) -> Tensor:
    """(B, P + N, C) and a branch like it or None, of any strides, (B, k) -> (B, P + k, C), as cut.py says.

    One launch of B x ceil((P + k) / 4) x ceil(C / 1024) programs.
    """
    batch, _, width = hidden.shape
    other = hidden if branch is None else branch
    rows = prefix + indices.shape[1]
    out = torch.empty(batch, rows, width, device=hidden.device, dtype=torch.promote_types(hidden.dtype, other.dtype))
    columns = min(1 << (width - 1).bit_length(), COLUMNS)
    _cut[(batch, -(-rows // ROWS), -(-width // columns))](
        *(hidden, other, indices, out, prefix, rows, width, *hidden.stride(), *other.stride(), *indices.stride()),
        ADD=branch is not None,
        ROWS=ROWS,
        COLUMNS=columns,
    )
    if launches.listeners:
        inputs = (hidden,) if branch is None else (hidden, branch)
        kept = sum(batch * rows * width * t.element_size() for t in inputs)
        launches.tell("triton.cut", kept + indices.nbytes, out.nbytes)
    return out


@triton.jit
def _cut(  # type: ignore[no-untyped-def]
    hidden,
    branch,
    indices,
    out,
    prefix,
    rows,
    width,
    hidden_b,
    hidden_n,
    hidden_c,
    branch_b,
    branch_n,
    branch_c,
    indices_b,
    indices_n,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    live = row < rows
    mask = live[:, None] & (column < width)[None, :]
    chosen = tl.load(indices + sample * indices_b + (row - prefix) * indices_n, live & (row >= prefix), other=0)
    source = tl.where(row < prefix, row, prefix + chosen)
    hiddens = hidden + (sample * hidden_b + source * hidden_n)[:, None]
    values = tl.load(hiddens + column[None, :] * hidden_c, mask)
    if ADD:  # in fp32 and rounded once, as torch adds
        branches = branch + (sample * branch_b + source * branch_n)[:, None]
        values = values.to(tl.float32) + tl.load(branches + column[None, :] * branch_c, mask).to(tl.float32)
    outs = out + ((sample * rows + row) * width)[:, None] + column[None, :]
    tl.store(outs, values.to(out.dtype.element_ty), mask)
