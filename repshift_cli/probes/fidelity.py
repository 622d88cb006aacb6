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
    "wilson",
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
INPUTS = Metric(
    "fidelity_inputs",
    "inputs compared",
    "",
    "higher",
    "value",
    "counted",
    "On how many inputs the outputs were compared.",
    gateable=False,
    detail=True,
)
KL_EACH = Metric(
    "fidelity_kl_each",
    "KL all",
    "nat",
    "lower",
    "value",
    "compared",
    "The same divergence at every token that the variant kept, of models that put out logits of each, averaged.",
)
TOP1_EACH = Metric(
    "fidelity_top1_each",
    "same top-1 all",
    "%",
    "higher",
    "value",
    "compared",
    "Share of the tokens that the variant kept whose highest class is that of the untouched model.",
)
METRICS = (TOP1, KL, COSINE, KL_EACH, TOP1_EACH, INPUTS)

RANDOM = "random weights: the classes mean nothing, so only KL is shown"
ZERO = "undefined: the output of {} is zero, and so has no direction (a head that begins with zeros?)"
HIDDEN = "which tokens are kept cannot be told of compiled code and graphs; see the eager row"
FLAT = "undefined: the untouched model's output is zero, so that every class is the highest (a head of zeros?)"


def make(context: Context) -> Measure:
    """The untouched model's outputs, taken once, to compare with."""
    return FidelityProbe(context.subject).measure


class NotFinite(CaseBroken):
    """The output holds NaN or infinity."""


class FidelityProbe:
    """Compares with the model as its library runs it: no pruning, no swapped attention.

    A classifier gets top-1 agreement, input by input, and KL(untouched || variant) in nats, averaged over the
    evaluation inputs; with random weights no top-1. A model that puts out logits of every token is a classifier by its
    last one, and gets the same of all tokens that both have. Any other model gets the cosine of its pooled output (of
    its tokens' mean where it has none).
    """

    def __init__(self, subject: Subject) -> None:
        with torch.inference_mode():
            self._reference, self._each = [], []
            for given in subject.evaluation:
                output = call(subject.module, _fresh(given))
                self._reference.append(_outputs(subject, output))
                self._each.append(_each(subject, output))
        self._classifies = self._reference[0][0] is not None

    def measure(self, step: Step) -> tuple[Measurement, ...]:
        """One forward for each evaluation batch; NotFinite where a result is NaN or infinite."""
        torch.manual_seed(step.case.seed)
        with step.active():
            variant, each, kept = [], [], []
            for given in step.subject.evaluation:
                output = step.run(_fresh(given))  # a graph's is overwritten by the next
                variant.append(_outputs(step.subject, output))
                each.append(_each(step.subject, output))
                kept.append(step.kept() if step.kept else None)
        pairs = list(zip(self._reference, variant, strict=True))
        inputs = INPUTS.of(sum(len(ref[1]) for ref, _ in pairs))
        if self._classifies:
            of_each = self._of_each(step, each, kept)
            of_last = _of_classes(torch.cat([r[0] for r, _ in pairs]), torch.cat([o[0] for _, o in pairs]), step)
            return *of_last, *of_each, inputs
        return _of_directions(torch.cat([r[1] for r, _ in pairs]), torch.cat([o[1] for _, o in pairs])), inputs

    def _of_each(self, step: Step, found: list[Any], kept: list[Any]) -> tuple[Measurement, ...]:
        """KL and top-1 at the tokens that both have, where the model puts out logits of each."""
        if step.subject.each is None:
            return ()
        if step.kept is None:
            return KL_EACH.missing(HIDDEN), TOP1_EACH.missing(HIDDEN)
        rows = [
            (at_places(reference, places), other)
            for reference, other, places in zip(self._each, found, kept, strict=True)
        ]
        reference, other = (torch.cat([pair[i].flatten(0, 1) for pair in rows]) for i in (0, 1))
        kl = KL_EACH.of(float(divergence(reference, other).double().mean()))
        if step.case.weights == "random":
            return kl, TOP1_EACH.missing(RANDOM)
        return kl, TOP1_EACH.of(float(100 * agreement(reference, other).mean()))


def at_places(rows: Tensor, places: Tensor | None) -> Tensor:
    """The rows (B, N, K) at these places (B | 1, k), all of them where there are none: (B, k, K)."""
    if places is None:
        return rows
    index = places.to(rows.device).expand(len(rows), -1).unsqueeze(-1)
    return rows.take_along_dim(index, dim=1)


def _each(subject: Subject, output: Any) -> Any:
    """The logits of every token in fp32 on the CPU, or None where there are no such."""
    return None if subject.each is None else subject.each(output).float().cpu()


def _fresh(inputs: Any) -> Any:
    """Copies, for a model that changes its inputs in place would be compared on others."""
    named = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    copies = {name: v.clone() if isinstance(v, Tensor) else v for name, v in named}
    return copies if isinstance(inputs, dict) else tuple(copies.values())


def _of_classes(reference: Tensor, other: Tensor, step: Step) -> tuple[Measurement, Measurement]:
    """Top-1 and KL from logits (M, K) of all inputs."""
    if not reference.any():
        return TOP1.missing(FLAT), KL.missing(FLAT)
    kl = KL.of(float(divergence(reference, other).double().mean()))
    if step.case.weights == "random":
        return TOP1.missing(RANDOM), kl
    return TOP1.of(*(100 * agreement(reference, other)).tolist()), kl


def _of_directions(reference: Tensor, other: Tensor) -> Measurement:
    """The mean cosine of pooled outputs (M, C); none where one of them is zero, for it has no direction."""
    for name, rows in (("the untouched model", reference), ("the variant", other)):
        if not rows.any(-1).all():
            return COSINE.missing(ZERO.format(name))
    return COSINE.of(float(cosine(reference, other).double().mean()))


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
