"""What is asked of a model on labelled data: one file per task, found by the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repshift_cli.evaluation.samples import Sample
from repshift_cli.records import Case, Metric, Subject, UsageError

ROOM = "evaluation.tasks"

Rows = dict[str, np.ndarray]
"""By name, one number for every sample: (N,)."""


class NotFinite(Exception):
    """A variant's outputs hold NaN or infinity: it fails, the others go on."""


@dataclass(frozen=True)
class Context:
    """What a task is given to begin with.

    `subject` is the built model and `case` its unpruned variant. `samples` are evaluated, `training` is what may be
    learnt from; `names` are what the model calls its classes. `options` are those of the command that tasks read.
    """

    subject: Subject
    case: Case
    cases: Sequence[Case]
    samples: Sequence[Sample]
    training: Sequence[Sample]
    names: Mapping[int, str] | None
    device: str
    options: Mapping[str, Any] = field(default_factory=dict)
    towers: Callable[[], Any] = lambda: None
    """Gives the text tower beside the model (`models.base.towers.TextTower`), or None where it has none."""
    frames: int | None = None
    """How many frames of each clip a model of images is shown, one by one."""

    @property
    def column(self) -> str:
        """What the model is given of a sample: `image`, or `text`; UsageError for a decoder, which has others."""
        if self.is_decoder:
            raise UsageError(f"{self.case.model} is a decoder: its tasks are next_token and multiple_choice")
        return "text" if is_text(self.subject.inputs) else "image"

    @property
    def is_decoder(self) -> bool:
        """Whether the model puts out the logits of a prompt's next token."""
        return is_decoder(self.subject.inputs)


class Judge:
    """A task on its way with one model and one data set: what the model is given, what is kept, how it is scored."""

    notes: tuple[str, ...] = ()
    """What must be said of how it judges: how labels were matched, what was fitted on."""
    figures: Mapping[str, Callable[[Rows], float]] = {}
    """Of metrics that are no mean over samples (statistic `bootstrap`): the figure from the rows of some samples."""
    samples: Sequence[Sample] | None = None
    """What is evaluated in the place of the data's own samples (windows of its texts), or None."""
    frames = False
    """Whether it takes what was kept of a clip's frames, one by one, as the items of one sample."""
    trains = False
    """Whether it learns from the training samples first: `fit` is called for every variant that `taught_by` names."""

    def items(self, sample: Sample) -> Sequence[Any]:
        """What the model is given of one sample: media or texts, as many of every sample."""
        raise NotImplementedError

    def features(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        """What is kept of each row (B, d) of a batch of training samples, for `fit`."""
        raise NotImplementedError

    def read(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        """What is kept of each row (B, d) of a batch's output, the row's sample beside it; NotFinite for NaN."""
        raise NotImplementedError

    def taught_by(self, context: Context) -> Sequence[Case]:
        """The variants whose outputs of the training samples it is fitted on."""
        return (context.case,)

    def fit(self, case: Case, outputs: np.ndarray, samples: Sequence[Sample]) -> None:
        """Learn from what was kept of the training samples under a variant (N, items, d), NaN for a damaged one."""

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        """Numbers for every sample from what was kept of it (N, items, d): metrics by name, and what `figures` read."""
        raise NotImplementedError


class Task(Protocol):
    """A task: a file of this room, or of another package by the entry point group `repshift.evaluation.tasks`."""

    METRICS: tuple[Metric, ...]
    """What it measures, the headline first. A share of right answers is 0 or 100 for each sample (statistic
    `wilson`), another mean any number (`mean`), and what is no mean over samples is resampled (`bootstrap`)."""

    def begin(self, context: Context) -> Judge:
        """Check that model and data fit the task (UsageError says what to do) and make it ready."""


def is_text(inputs: Any) -> bool:
    """Whether a model is given token ids."""
    return isinstance(inputs, dict) and "input_ids" in inputs


def is_decoder(inputs: Any) -> bool:
    """Whether a model is given prompts, whose next token it tells."""
    return is_text(inputs) and "use_cache" in inputs


def finite(tensor: Tensor) -> Tensor:
    """The tensor in fp32 itself; NotFinite where it holds anything else than numbers."""
    found = tensor.detach().float()
    if not torch.isfinite(found).all():
        raise NotFinite("the output holds NaN or infinity")
    return found
