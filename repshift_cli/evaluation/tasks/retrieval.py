"""Retrieval: is the partner of a query among the nearest of all partners? Recall at 1, 5 and 10.

A partner is a second text or image, through the same model; or, of a checkpoint with two towers (CLIP, SigLIP), the
text of an image or clip. Variants prune the vision tower; texts go through theirs whole, once. A clip is the mean of
its frames' directions (CLIP4Clip, arXiv 2104.08860, its parameter-free kind).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from repshift_cli.evaluation.samples import IMAGE, PAIR, TEXT, Sample, need
from repshift_cli.evaluation.tasks import Context, Judge, Rows, finite
from repshift_cli.evaluation.tasks.similarity import Pairs, directions
from repshift_cli.records import Case, Metric, UsageError

AT = (1, 5, 10)
_SHARE = ("%", "higher", "bootstrap", "labelled")
METRICS = (
    *(
        Metric(
            f"recall_at_{k}", f"R@{k}", *_SHARE,
            f"Share of the queries whose partner is among the {k} nearest of all partners, by cosine; its interval by "
            "a bootstrap over the queries. Of a checkpoint with two towers texts are the queries.",
        )
        for k in AT
    ),
    *(
        Metric(
            f"text_recall_at_{k}", f"text R@{k}", *_SHARE,
            f"Share of the images or clips of which a text of their own is among the {k} nearest of all texts.",
        )
        for k in AT
    ),
)  # fmt: skip


def begin(context: Context) -> Judge:
    """Check that there are pairs, and more than would be found by having few."""
    there = context.samples[0].columns
    if context.column == IMAGE and not {TEXT, PAIR} & there.keys():
        raise UsageError(
            "the task retrieval needs a column text (what images or clips are found by, with a checkpoint of two "
            f"towers) or pair (other images), or --column text=NAME; the data has {', '.join(there)}"
        )
    if context.column == IMAGE and PAIR not in there:
        return Towers(context, _enough(_of_media(context.samples)))
    need(context.samples, (context.column, PAIR), "the task retrieval")
    _enough(context.samples)
    return Retrieval(context)


def _enough(samples: Sequence[Sample]) -> Sequence[Sample]:
    """The samples, if more than would be found by having few."""
    if len(samples) <= max(AT):
        raise UsageError(f"{len(samples)} pairs are too few for retrieval: more than {max(AT)} are needed")
    return samples


def _of_media(samples: Sequence[Sample]) -> list[Sample]:
    """One sample for each image or clip, with all of its texts."""
    texts: dict[Any, list[str]] = {}
    names: dict[Any, str] = {}
    for sample in samples:
        texts.setdefault(sample[IMAGE], []).append(str(sample[TEXT]))
        names.setdefault(sample[IMAGE], sample.name)
    return [Sample(names[media], {IMAGE: media, TEXT: told}) for media, told in texts.items()]


def _recall(k: int, place: str = "place") -> Callable[[Rows], float]:
    return lambda rows: 100.0 * float((rows[place] < k).mean())


def _of_texts(k: int) -> Callable[[Rows], float]:
    """Of all texts of some images, those whose image is among the first k."""
    return lambda rows: 100.0 * float(rows[f"found_{k}"].sum() / rows["texts"].sum())


class Retrieval(Pairs):
    """The place of each query's partner among all partners."""

    notes = ("a query looks among all samples evaluated: with --limit among fewer, which is easier",)
    figures: Mapping[str, Callable[[Rows], float]] = {f"recall_at_{k}": _recall(k) for k in AT}

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        both = directions(outputs.astype(np.float64))
        cosine = both[:, 0] @ both[:, 1].T
        return {"place": (cosine > np.diag(cosine)[:, None]).sum(1)}


class Towers(Judge):
    """Kept of an image or a frame: its features where texts have theirs."""

    frames = True
    figures: Mapping[str, Callable[[Rows], float]] = {
        **{f"recall_at_{k}": _of_texts(k) for k in AT},
        **{f"text_recall_at_{k}": _recall(k, "text_place") for k in AT},
    }

    def __init__(self, context: Context, samples: Sequence[Sample]) -> None:
        tower = context.towers()
        if tower is None:
            raise UsageError(
                f"{context.case.model} has no tower for texts: retrieval by text takes a checkpoint of CLIP or SigLIP "
                "with both (--model hf:FOLDER), retrieval of images a column pair of images"
            )
        self.samples, self._subject, self._project = samples, context.subject, tower.project
        texts = [text for sample in samples for text in sample[TEXT]]
        features = iter(directions(finite(tower.embed(texts)).cpu().double().numpy()))
        self._texts = {s.name: np.stack([next(features) for _ in s[TEXT]]) for s in samples}
        what = f"clips, each the mean of {context.frames} frames," if context.frames else "images"
        self.notes = (
            f"{len(texts)} texts and {len(samples)} {what}: a query looks among all evaluated (with --limit among "
            "fewer, which is easier); R@k is of texts as queries, text R@k the other way",
            "the vision tower is pruned, the text tower runs whole",
        )

    def items(self, sample: Sample) -> Sequence[Any]:
        return (sample[IMAGE],)

    def read(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        return finite(self._project(self._subject.pooled(output))).cpu().numpy()

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        media = directions(directions(outputs.astype(np.float64)).mean(1))
        texts = [self._texts[s.name] for s in samples]
        counts = np.array([len(own) for own in texts])
        owner = np.repeat(np.arange(len(samples)), counts)
        cosine = np.concatenate(texts) @ media.T
        own = cosine[np.arange(len(owner)), owner]
        place = (cosine > own[:, None]).sum(1)
        best = np.maximum.reduceat(own, np.cumsum(counts) - counts)
        rows = {"texts": counts, "text_place": (cosine > best).sum(0)}
        return rows | {f"found_{k}": np.bincount(owner, place < k, len(samples)) for k in AT}
