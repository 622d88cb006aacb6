"""Fidelity: how far a variant's output is from the untouched model's, in the same dtype on the same input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from repshift_cli.probes import Context, Measure
from repshift_cli.records import CaseBroken, Measurement, Metric, Step, Subject, call

TOP1 = Metric(
    "fidelity_top1",
    "same top-1",
    "%",
    "higher",
    "value",
    "compared",
    "Share of the inputs on which the variant's highest class is that of the untouched model.",
)
KL = Metric(
    "fidelity_kl",
    "KL",
    "nat",
    "lower",
    "value",
    "compared",
    "Divergence of the variant's class probabilities from those of the untouched model, averaged over the inputs.",
)
COSINE = Metric(
    "fidelity_cosine",
    "cosine",
    "",
    "higher",
    "value",
    "compared",
    "Cosine between the pooled outputs of the variant and of the untouched model, for models that are no classifiers.",
)
METRICS = (TOP1, KL, COSINE)


def make(context: Context) -> Measure:
    """The untouched model's outputs, taken once, to compare with."""
    return FidelityProbe(context.subject).measure


class NotFinite(CaseBroken):
    """The output holds NaN or infinity."""


class FidelityProbe:
    """Compares with the model as its library runs it: no pruning, no swapped attention.

    A classifier gets top-1 agreement in percent and KL(untouched || variant) in nats, averaged over the evaluation
    inputs; any other model the cosine of its pooled output (of its tokens' mean where it has none).
    """

    def __init__(self, subject: Subject) -> None:
        with torch.inference_mode():
            self._reference = [_outputs(subject, call(subject.module, i)) for i in subject.evaluation]
        self._classifies = self._reference[0][0] is not None

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """One forward for each evaluation batch; NotFinite where a result is NaN or infinite."""
        torch.manual_seed(step.case.seed)
        with step.active():
            variant = [_outputs(step.subject, step.run(i)) for i in step.subject.evaluation]
        pairs = list(zip(self._reference, variant, strict=True))
        if self._classifies:
            kl = _mean([divergence(ref[0], out[0]) for ref, out in pairs])
            return (TOP1.of(100 * _mean([agreement(ref[0], out[0]) for ref, out in pairs])), KL.of(kl))
        return (COSINE.of(_mean([cosine(ref[1], out[1]) for ref, out in pairs])),)


def _outputs(subject: Subject, output: Any) -> tuple[Any, Tensor]:
    """Logits (or None) and pooled output in fp32 on the CPU, checked to be finite."""
    logits, pooled = subject.logits(output), subject.pooled(output)
    kept = tuple(None if t is None else t.float().cpu() for t in (logits, pooled))
    if not all(t.isfinite().all() for t in kept if t is not None):
        raise NotFinite("the output holds NaN or infinity")
    return kept  # type: ignore[return-value]


def agreement(reference: Tensor, other: Tensor) -> Tensor:
    """1 where the highest class is the same: logits (B, K), (B, K) -> (B,)."""
    return (reference.argmax(-1) == other.argmax(-1)).float()


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """KL(reference || other) in nats: logits (B, K), (B, K) -> (B,)."""
    p, q = reference.log_softmax(-1), other.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)


def cosine(reference: Tensor, other: Tensor) -> Tensor:
    """Cosine similarity of the rows: (B, C), (B, C) -> (B,)."""
    return torch.nn.functional.cosine_similarity(reference.double(), other.double(), dim=-1)


def _mean(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).double().mean())
