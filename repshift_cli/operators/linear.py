"""Linear attention: features of queries and keys in the place of the softmax, so that sums over keys are kept.

phi = elu + 1; out_i = phi(q_i) S / phi(q_i) z, S = sum phi(k_j) v_j^T, z = sum phi(k_j); causal: prefix sums in chunks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from repshift_cli.operators.base.packages import missing
from repshift_cli.operators.base.reference import per_query_head
from repshift_cli.operators.base.rows import grouped
from repshift_cli.operators.base.spec import Arranged, Cost, Engine, Shape, Spec
from repshift_cli.operators.base.spec import takes_all as refused
from repshift_cli.operators.base.states import CHUNK, chunked, features, lower, normalised, wide, with_ones

PAPER = "Katharopoulos et al. 2020, arXiv 2006.16236"
CLASS = "trained"
CAUSAL = (False, True)

__all__ = ["refused"]


def arrange(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Arranged:
    """As given."""
    return Arranged(q, k, v, full="has to be trained with its features")


def attend(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """(B, H, N, d), (B, Hkv, N, d), (B, Hkv, N, d) -> (B, H, N, d)."""
    query, key, value = wide(features(q)), wide(features(grouped(k, q))), with_ones(wide(grouped(v, q)))
    out = _causal(query, key, value) if spec.causal else query @ (key.transpose(-2, -1) @ value)
    return normalised(out).to(q.dtype)


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """phi(q_i) (sum over j <= i of phi(k_j) v_j^T): within chunks as a masked product, between them as a state."""
    n = q.shape[2]
    q, k, v = (chunked(t) for t in (q, k, v))
    states = (k.transpose(-2, -1) @ v).cumsum(2)
    before = torch.cat([torch.zeros_like(states[:, :, :1]), states[:, :, :-1]], 2)
    within = (q @ k.transpose(-2, -1)) * lower(CHUNK, q.device)
    return (within @ v + q @ before).flatten(2, 3)[:, :, :n]


def with_fla(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """flash-linear-attention's chunked kernels, on the same features: (B, N, H, d) inside."""
    from fla.ops.linear_attn import chunk_linear_attn

    q, k, v = (t.transpose(1, 2).contiguous() for t in (features(q), features(grouped(k, q)), grouped(v, q)))
    out = chunk_linear_attn(q, k, v, scale=1.0, normalize=True)[0]
    return out.transpose(1, 2)


def only_causal(shape: Shape, spec: Spec) -> str | None:
    """The package's kernels are causal."""
    return None if spec.causal else "flash-linear-attention's kernels are causal"


def reference(q: Tensor, k: Tensor, v: Tensor, spec: Spec) -> Tensor:
    """The equation as similarities: a matrix of phi(q_i) phi(k_j), masked, its rows normalised."""
    q, k, v = features(q), features(per_query_head(k, q)), per_query_head(v, q)
    similar = q @ k.transpose(-2, -1)
    similar = similar.tril() if spec.causal else similar
    return similar / similar.sum(-1, keepdim=True) @ v


def cost(shape: Shape, spec: Spec) -> Cost:
    """Two products of d x (d + 1) per token; causal: also the chunk's own C pairs, and a state per chunk moves."""
    rows, d = shape.batch * shape.heads * shape.tokens, shape.head_dim
    within = rows * CHUNK * (2 * d + 1) if spec.causal else 0
    states = rows // CHUNK * d * (d + 1) if spec.causal else 0
    return Cost(rows * 2 * d * (d + 1) + within, shape.given + 4 * rows * d + 4 * states, 8 * rows * d + 3 * states)


ENGINES = {
    "plain": Engine(attend),
    "fla": Engine(
        with_fla,
        kernels=r"chunk_\w*",
        unavailable=missing("fla", "pip install flash-linear-attention"),
        backward=("cuda",),
        refused=only_causal,
    ),
}
