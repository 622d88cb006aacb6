"""Next-token loss of a decoder in prefill: how surprised is it by the token behind each window of a text?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from repshift_cli.evaluation.samples import TEXT, Sample, need
from repshift_cli.evaluation.tasks import Context, Judge, Rows, finite
from repshift_cli.models.inputs.sentences import tokenizer_of
from repshift_cli.records import Case, Metric, UsageError

METRICS = (
    Metric(
        "next_token_loss", "next-token loss", "nats", "lower", "mean", "labelled",
        "Cross entropy of the token that follows each window of the text, in nats, averaged over the windows.",
    ),
    Metric(
        "perplexity", "perplexity", "", "lower", "bootstrap", "labelled",
        "The exponential of the mean next-token loss, its interval by a bootstrap over the windows.",
    ),
    Metric(
        "next_token_top1", "next token", "%", "higher", "wilson", "labelled",
        "Share of the windows whose following token is the most probable one.",
    ),
)  # fmt: skip


def begin(context: Context) -> Judge:
    """Cut the texts into windows of the model's length; UsageError where none is long enough."""
    tokenizer = decoder_tokenizer(context, "next_token")
    need(context.samples, (TEXT,), "the task next_token")
    length = int(context.subject.inputs["input_ids"].shape[1])
    windows = [w for sample in context.samples for w in _windows(sample, tokenizer, length)]
    if not windows:
        raise UsageError(f"no text has the {length + 1} tokens of a window and what follows it; use fewer --tokens")
    return NextToken(context, windows, length)


def decoder_tokenizer(context: Context, task: str) -> Any:
    """The tokenizer of a decoder's checkpoint; UsageError for a model that is none."""
    if not context.is_decoder:
        raise UsageError(f"--task {task} is for decoders, and {context.case.model} is none")
    if not context.case.model.startswith("hf:"):
        raise UsageError(f"{context.case.model} has no tokenizer; name a checkpoint, --model hf:FOLDER")
    return tokenizer_of(context.case.model.removeprefix("hf:"))


@dataclass(frozen=True)
class Window(Sample):
    """Tokens of a text, and the one behind them."""

    ids: tuple[int, ...] = ()
    following: int = 0


def _windows(sample: Sample, tokenizer: Any, length: int) -> list[Window]:
    ids = tokenizer(str(sample[TEXT]), verbose=False)["input_ids"]
    starts = range(0, len(ids) - length, length + 1)
    return [Window(f"{sample.name} from token {i}", {}, tuple(ids[i : i + length]), ids[i + length]) for i in starts]


class NextToken(Judge):
    """What is kept of a window: the loss of the token behind it, and whether that was the first choice."""

    figures: Mapping[str, Callable[[Rows], float]] = {
        "perplexity": lambda rows: math.exp(float(rows["next_token_loss"].mean()))
    }

    def __init__(self, context: Context, windows: Sequence[Window], length: int) -> None:
        self._subject, self.samples = context.subject, windows
        self.notes = (f"{len(windows)} windows of {length} tokens, of each of which the next token is asked",)

    def items(self, sample: Sample) -> Sequence[Any]:
        assert isinstance(sample, Window)
        return (sample.ids,)

    def read(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        logits = finite(self._subject.logits(output))
        target = torch.tensor([s.following for s in samples if isinstance(s, Window)], device=logits.device)
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        return torch.stack((loss, (logits.argmax(-1) == target).float()), -1).cpu().numpy()

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        loss, first = outputs[:, 0].T.astype(np.float64)
        return {"next_token_loss": loss, "next_token_top1": 100.0 * first}
