"""Similarity of pairs: does the cosine of two features rank pairs as people did? Spearman's correlation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from repshift_cli.analysis.paired import spearman
from repshift_cli.evaluation.samples import PAIR, SCORE, Sample, need
from repshift_cli.evaluation.tasks import Context, Judge, Rows, finite
from repshift_cli.records import Case, Metric, UsageError

METRICS = (
    Metric(
        "spearman", "Spearman", "", "higher", "bootstrap", "labelled",
        "Rank correlation of the features' cosine with the given scores, its interval by a bootstrap over the pairs.",
    ),
)  # fmt: skip


def begin(context: Context) -> Judge:
    """Check that every pair has a score."""
    need(context.samples, (context.column, PAIR, SCORE), "the task similarity")
    return Similarity(context)


class Pairs(Judge):
    """Both sides of a pair through the model, and their features kept."""

    def __init__(self, context: Context) -> None:
        self._subject, self._column = context.subject, context.column

    def items(self, sample: Sample) -> Sequence[Any]:
        return (sample[self._column], sample[PAIR])

    def read(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        return finite(self._subject.pooled(output)).cpu().numpy()


def directions(features: np.ndarray) -> np.ndarray:
    """Of length 1: (..., C) -> (..., C)."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True).clip(1e-12)


class Similarity(Pairs):
    """The cosine of each pair beside its score."""

    figures: Mapping[str, Callable[[Rows], float]] = {"spearman": lambda rows: spearman(rows["cosine"], rows["given"])}

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        both = directions(outputs.astype(np.float64))
        return {"cosine": (both[:, 0] * both[:, 1]).sum(-1), "given": np.array([_number(s) for s in samples])}


def _number(sample: Sample) -> float:
    try:
        return float(sample[SCORE])
    except (TypeError, ValueError) as error:
        raise UsageError(f"{sample.name}: the score {sample[SCORE]!r} is no number") from error
