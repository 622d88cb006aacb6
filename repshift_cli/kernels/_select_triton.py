"""Selection without a sort: a radix search for the k-th highest score in registers, prefix sums for the order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from repshift_cli.kernels import launches


def top(scores: Tensor, count: int) -> Tensor:
    """(B, N) -> (B, count) int64, as select.top says; one launch of B programs, one for each row.

    The search takes 4 bits of the 32-bit image of the score a pass (8 passes of 16 counts), for rows over 1024 one
    bit a pass, where the comparisons and not the reductions cost the time.
    """
    batch, tokens = scores.shape
    indices = torch.empty(batch, count, device=scores.device, dtype=torch.int64)
    block = 1 << (tokens - 1).bit_length()
    _top[(batch,)](
        *(scores, indices, tokens, count, *scores.stride()),
        BLOCK=block,
        BITS=4 if block <= 1024 else 1,
        num_warps=max(1, min(16, block // 128)),
    )
    if launches.listeners:
        launches.tell("triton.select", batch * tokens * scores.element_size(), indices.nbytes)
    return indices


@triton.jit
def _top(  # type: ignore[no-untyped-def]
    scores,
    indices,
    tokens,
    count,
    stride_b,
    stride_n,
    BLOCK: tl.constexpr,
    BITS: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK)
    live = position < tokens
    score = tl.load(scores + sample * stride_b + position.to(tl.int64) * stride_n, live, other=0.0).to(tl.float32)
    score = tl.where(score != score, float("inf"), score)  # NaN counts as +inf
    score = tl.where(score == 0.0, 0.0, score)  # -0.0 equals 0.0
    bits = score.to(tl.uint32, bitcast=True)
    rising = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)  # unsigned, in the scores' order
    image = tl.where(live, rising, 0)  # lower than the image of any number
    threshold = tl.full([], 0, tl.uint32)
    shift = tl.full([], 32, tl.uint32)
    digit = tl.arange(0, 1 << BITS).to(tl.uint32)
    for _ in range(32 // BITS):
        shift -= BITS
        bound = threshold | (digit << shift)
        reached = tl.sum((image[:, None] >= bound[None, :]).to(tl.int32), 0)
        highest = tl.sum((reached >= count).to(tl.int32), 0) - 1
        threshold |= highest.to(tl.uint32) << shift
    above = image > threshold
    tie = image == threshold
    room = count - tl.sum(above.to(tl.int32), 0)
    keep = above | (tie & (tl.cumsum(tie.to(tl.int32), 0) <= room))
    slot = tl.cumsum(keep.to(tl.int32), 0) - 1
    tl.store(indices + sample * count + slot, position.to(tl.int64), keep)
