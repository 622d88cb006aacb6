"""The score in one pass: every input is read once, sums are kept in fp32, only the scores are written."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from repshift_cli.kernels import launches

ROWS = 4
COLUMNS = 1024


def score(first: Tensor, second: Tensor, order: int, form: str) -> Tensor:
    """(B, N, C), (B, N, C) of any strides -> (B, N) fp32; shift.py says what `order` and `form` are.

    One launch of B x ceil(N / 4) programs, each going along 4 rows in steps of at most 1024 columns.
    """
    batch, tokens, width = first.shape
    scores = torch.empty(batch, tokens, device=first.device, dtype=torch.float32)
    columns = min(1 << (width - 1).bit_length(), COLUMNS)
    _score[(batch, -(-tokens // ROWS))](
        *(first, second, scores, tokens, *first.stride(), *second.stride()),
        WIDTH=width,
        ORDER=order,
        FORM=form,
        ROWS=ROWS,
        COLUMNS=columns,
    )
    if launches.listeners:
        inputs = (first,) if form == "length" else (first, second)
        launches.tell("triton.score", sum(batch * tokens * width * t.element_size() for t in inputs), scores.nbytes)
    return scores


@triton.jit
def _score(  # type: ignore[no-untyped-def]
    first,
    second,
    scores,
    tokens,
    first_b,
    first_n,
    first_c,
    second_b,
    second_n,
    second_c,
    WIDTH: tl.constexpr,
    ORDER: tl.constexpr,
    FORM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = row < tokens
    firsts = first + (sample * first_b + row * first_n)[:, None]
    seconds = second + (sample * second_b + row * second_n)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    moved_square = tl.zeros([ROWS, COLUMNS], tl.float32)
    origin_square = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        column = (start + tl.arange(0, COLUMNS)).to(tl.int64)
        mask = live[:, None] & (column < WIDTH)[None, :]
        moved = tl.load(firsts + column[None, :] * first_c, mask, other=0.0).to(tl.float32)
        origin = moved
        if FORM != "length":
            origin = tl.load(seconds + column[None, :] * second_c, mask, other=0.0).to(tl.float32)
        if FORM == "moved_from":
            moved += origin
        if ORDER == 0:
            total += moved * origin
            moved_square += moved * moved
            origin_square += origin * origin
        else:
            if FORM == "distance":
                moved -= origin
            if ORDER == 1:
                total += tl.abs(moved)
            else:
                total += moved * moved
    score = tl.sum(total, 1)
    if ORDER == 2:
        score = tl.sqrt_rn(score)
    if ORDER == 0:
        moved_length = tl.maximum(tl.sqrt_rn(tl.sum(moved_square, 1)), 1e-8)
        origin_length = tl.maximum(tl.sqrt_rn(tl.sum(origin_square, 1)), 1e-8)
        score = 1.0 - tl.div_rn(score, moved_length * origin_length)
    tl.store(scores + sample * tokens + row, score, live)
