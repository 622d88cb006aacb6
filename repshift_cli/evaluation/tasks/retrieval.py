"""Retrieval: is the partner of a query among the nearest of all partners? Recall at 1, 5 and 10."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from repshift_cli.evaluation.samples import PAIR, Sample, need
from repshift_cli.evaluation.tasks import Context, Judge, Rows
from repshift_cli.evaluation.tasks.similarity import Pairs, directions
from repshift_cli.records import Metric, UsageError

AT = (1, 5, 10)
METRICS = tuple(
    Metric(
        f"recall_at_{k}", f"R@{k}", "%", "higher", "bootstrap", "labelled",
        f"Share of the queries whose partner is among the {k} nearest of all partners, by cosine; its interval by a "
        "bootstrap over the queries.",
    )
    for k in AT
)  # fmt: skip


def begin(context: Context) -> Judge:
    """Check that there are pairs, and more than would be found by having few."""
    need(context.samples, (context.column, PAIR), "the task retrieval")
    if len(context.samples) <= max(AT):
        raise UsageError(f"{len(context.samples)} pairs are too few for retrieval: more than {max(AT)} are needed")
    return Retrieval(context)


def _recall(k: int) -> Callable[[Rows], float]:
    return lambda rows: 100.0 * float((rows["place"] < k).mean())


class Retrieval(Pairs):
    """The place of each query's partner among all partners."""

    figures: Mapping[str, Callable[[Rows], float]] = {f"recall_at_{k}": _recall(k) for k in AT}

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        both = directions(outputs.astype(np.float64))
        cosine = both[:, 0] @ both[:, 1].T
        return {"place": (cosine > np.diag(cosine)[:, None]).sum(1)}
