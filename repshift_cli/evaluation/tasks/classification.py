"""Classification by the model's own head: is the label its first class, or among its first five?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repshift_cli.evaluation.labels import matched
from repshift_cli.evaluation.samples import LABEL, Sample, need
from repshift_cli.evaluation.tasks import Context, Judge, Rows, finite
from repshift_cli.records import Case, Metric, UsageError, call

_SHARE = ("%", "higher", "wilson", "labelled")
TOP1 = Metric(
    "top1",
    "top-1",
    *_SHARE,
    "Share of the samples whose label is the class of the highest logit.",
)
TOP5 = Metric(
    "top5",
    "top-5",
    *_SHARE,
    "Share of the samples whose label is among the five highest logits.",
)
METRICS = (TOP1, TOP5)
FEW = 5
"""With no more classes than this everything is among the first five."""


def begin(context: Context) -> Judge:
    """Match labels to the model's classes; UsageError where the model has none."""
    column = context.column
    with torch.inference_mode():
        logits = context.subject.logits(call(context.subject.module, context.subject.inputs))
    if logits is None:
        raise UsageError(
            f"{context.case.model} has no head that tells classes apart; --task probe fits one on its features"
        )
    need(context.samples, (column, LABEL), "the task classification")
    return Classification(context, int(logits.shape[-1]))


class Classification(Judge):
    """What is kept of an image: the place of its label among the logits, and the first class."""

    def __init__(self, context: Context, count: int) -> None:
        self._subject, self._column, self._count = context.subject, context.column, count
        self._classes, how = matched((str(s[LABEL]) for s in context.samples), count, context.names)
        self.notes = (f"{len(self._classes)} labels matched to the model's {count} classes {how}",)

    def items(self, sample: Sample) -> Sequence[Any]:
        return (sample[self._column],)

    def read(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        logits = finite(self._subject.logits(output))
        label = torch.tensor([self._classes[str(s[LABEL])] for s in samples], device=logits.device)
        return torch.stack((place_of(logits, label), logits.argmax(-1)), -1).cpu().numpy().astype(np.float32)

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        place = outputs[:, 0, 0]
        rows = {"top1": 100.0 * (place < 1)}
        return rows if self._count <= FEW else rows | {"top5": 100.0 * (place < 5)}


def place_of(logits: Tensor, label: Tensor) -> Tensor:
    """How many classes come before the label's, ties in the order of the classes: (B, K), (B,) -> (B,)."""
    own = logits.gather(1, label[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < label[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(-1)
