"""Classification of a backbone without a head: a linear probe and nearest neighbours, fitted on a training split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repshift_cli.evaluation.samples import LABEL, Sample, need
from repshift_cli.evaluation.tasks import Context, Judge, Rows, finite
from repshift_cli.records import Case, Metric, UsageError

_SHARE = ("%", "higher", "wilson", "labelled")
METRICS = (
    Metric("probe_top1", "linear probe", *_SHARE, "Share of the samples named by a linear classifier of the features."),
    Metric("knn_top1", "k-NN", *_SHARE, "Share of the samples named by the nearest training samples, by cosine."),
)
NEIGHBOURS = 20
TEMPERATURE = 0.07
"""Of the weights exp(cosine / temperature) of neighbours, as DINO has it (arXiv 2104.14294, section 4.1)."""
PENALTY = 1.0
"""Half this times the squared weights is added to the summed loss: scikit-learn's C = 1."""


def begin(context: Context) -> Judge:
    """Check that there is something to fit on."""
    if not context.training:
        raise UsageError("--task probe is fitted on labelled samples of their own: name them, --train SPLIT or PATH")
    for samples in (context.samples, context.training):
        need(samples, (context.column, LABEL), "the task probe")
    return Probe(context)


class Probe(Judge):
    """What is kept of a sample is what either head answers; with `refit` every variant has heads of its own."""

    trains = True

    def __init__(self, context: Context) -> None:
        self._subject, self._column, self._case = context.subject, context.column, context.case
        self._refit = bool(context.options.get("refit"))
        self._neighbours = int(context.options.get("neighbours") or NEIGHBOURS)
        self._heads: dict[Case, Heads] = {}
        self._classes = {name: i for i, name in enumerate(sorted({str(s[LABEL]) for s in context.training}))}
        strange = sorted({str(s[LABEL]) for s in context.samples} - set(self._classes))
        if strange:
            some = ", ".join(map(repr, strange[:3]))
            raise UsageError(f"{len(strange)} labels of the data are not in the training data, like {some}")
        if len(self._classes) < 2:
            raise UsageError("the training data has one class only: there is nothing to tell apart")
        own = "each variant's own features (--refit)" if self._refit else "the features of the unpruned model"
        self.notes = (
            f"linear probe and {self._neighbours} nearest neighbours fitted on {own}, on "
            f"{len(context.training)} samples of {len(self._classes)} classes",
        )

    def taught_by(self, context: Context) -> Sequence[Case]:
        return context.cases if self._refit else (context.case,)

    def items(self, sample: Sample) -> Sequence[Any]:
        return (sample[self._column],)

    def features(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        return finite(self._subject.pooled(output)).cpu().numpy()

    def fit(self, case: Case, outputs: np.ndarray, samples: Sequence[Sample]) -> None:
        known = ~np.isnan(outputs[:, 0, 0])
        labels = np.array([self._classes[str(s[LABEL])] for s in samples])
        features = torch.from_numpy(outputs[known, 0])
        self._heads[case] = Heads(features, torch.from_numpy(labels[known]), len(self._classes), self._neighbours)

    def read(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        features = torch.from_numpy(self.features(case, output, samples))
        heads = self._heads[case if self._refit else self._case]
        return torch.stack((heads.linear(features), heads.nearest(features)), -1).numpy().astype(np.float32)

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        labels = np.array([self._classes[str(s[LABEL])] for s in samples])
        return {"probe_top1": 100.0 * (outputs[:, 0, 0] == labels), "knn_top1": 100.0 * (outputs[:, 0, 1] == labels)}


class Heads:
    """A linear classifier of standardised features, and their nearest neighbours: features (N, C), labels (N,)."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, neighbours: int) -> None:
        features = features.double()
        self._mean, self._spread = features.mean(0), features.std(0).clamp_min(1e-8)
        self._weights = _logistic((features - self._mean) / self._spread, labels, classes)
        self._directions = torch.nn.functional.normalize(features, dim=-1)
        self._classes = torch.nn.functional.one_hot(labels, classes).double()
        self._neighbours = min(neighbours, len(labels))

    def linear(self, features: Tensor) -> Tensor:
        """The class of the highest score: (B, C) -> (B,)."""
        return _scores((features.double() - self._mean) / self._spread, self._weights).argmax(-1)

    def nearest(self, features: Tensor) -> Tensor:
        """The class with the most weight among the nearest: (B, C) -> (B,)."""
        near = torch.nn.functional.normalize(features.double(), dim=-1) @ self._directions.T
        cosine, place = near.topk(self._neighbours, -1)
        weight = ((cosine - cosine[:, :1]) / TEMPERATURE).exp()
        return (weight[..., None] * self._classes[place]).sum(1).argmax(-1)


def _logistic(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Weights (C + 1, classes) of multinomial logistic regression with an L2 penalty, the bias last and free."""
    weights = torch.zeros(features.shape[1] + 1, classes, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(_scores(features, weights), labels, reduction="sum")
        loss = (loss + PENALTY / 2 * weights[:-1].square().sum()) / len(labels)
        loss.backward()
        return loss

    with torch.inference_mode(False), torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _scores(features: Tensor, weights: Tensor) -> Tensor:
    return features @ weights[:-1] + weights[-1]
