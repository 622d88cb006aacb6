"""How far an output is from the untouched model's, in fp64, sample by sample."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repshift_cli.records import Subject

KL = "KL divergence of the class probabilities from the untouched model's, in nats"
DISTANCE = "distance of the pooled output from the untouched model's, over its length"


def read_out(subject: Subject, output: Any) -> Tensor:
    """Logits where the model is a classifier, else the pooled output: (B, K), fp64."""
    logits = subject.logits(output)
    return (subject.pooled(output) if logits is None else logits).double()


def measure_of(subject: Subject, output: Any) -> str:
    """What `change` is of this model, in words."""
    return DISTANCE if subject.logits(output) is None else KL


def change(reference: Tensor, other: Tensor, what: str) -> Tensor:
    """How far `other` (B, K) is from `reference` (1 | B, K), 0 for the same: (B,).

    KL: KL(reference || other) of softmaxed logits. DISTANCE: |other - reference| / |reference|.
    """
    if what == KL:
        p, q = reference.log_softmax(-1), other.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).clamp_min(0)
    return (other - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
