"""Multiple choice for decoders: which letter comes first behind the question and its lettered choices?"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from repshift_cli.evaluation.samples import CHOICES, LABEL, TEXT, Sample, need
from repshift_cli.evaluation.tasks import Context, Judge, Rows, finite
from repshift_cli.evaluation.tasks.next_token import decoder_tokenizer
from repshift_cli.records import Case, Metric, UsageError

METRICS = (
    Metric(
        "choice", "accuracy", "%", "higher", "wilson", "labelled",
        "Share of the questions whose right letter has the highest logit among the letters of the choices.",
    ),
)  # fmt: skip
LETTERS = string.ascii_uppercase
BETWEEN = "|"


def begin(context: Context) -> Judge:
    """Check that every question has its choices and its answer among them."""
    tokenizer = decoder_tokenizer(context, "multiple_choice")
    need(context.samples, (TEXT, CHOICES, LABEL), "the task multiple_choice")
    return MultipleChoice(context, tokenizer)


class MultipleChoice(Judge):
    """What is kept of a question: 1 where the right letter is the first, else 0."""

    def __init__(self, context: Context, tokenizer: Any) -> None:
        self._subject = context.subject
        self._letters = [tokenizer.encode(f" {letter}", add_special_tokens=False)[-1] for letter in LETTERS]
        self._ids = {s.name: tuple(tokenizer(prompt(s))["input_ids"]) for s in context.samples}
        self._right = {s.name: right(s) for s in context.samples}
        longest, most = max(map(len, self._ids.values())), int(context.subject.inputs["input_ids"].shape[1])
        if longest > most:
            raise UsageError(f"the longest question has {longest} tokens, more than {most}: use --tokens {longest}")
        self.notes = ("the answer is the letter of the highest logit behind the question, its choices and `Answer:`",)

    def items(self, sample: Sample) -> Sequence[Any]:
        return (self._ids[sample.name],)

    def read(self, case: Case, output: Any, samples: Sequence[Sample]) -> np.ndarray:
        logits = finite(self._subject.logits(output))[:, self._letters].cpu().numpy()
        counts = [len(choices_of(s)) for s in samples]
        found = [int(row[:n].argmax()) for row, n in zip(logits, counts, strict=True)]
        return np.array([[float(f == self._right[s.name])] for f, s in zip(found, samples, strict=True)], np.float32)

    def scores(self, outputs: np.ndarray, samples: Sequence[Sample]) -> Rows:
        return {"choice": 100.0 * outputs[:, 0, 0]}


def choices_of(sample: Sample) -> list[str]:
    """The choices: a list, or text with `|` between them; UsageError where there are not 2 to 26."""
    told = sample[CHOICES]
    found = [str(c).strip() for c in (told.split(BETWEEN) if isinstance(told, str) else told)]
    if not 2 <= len(found) <= len(LETTERS):
        raise UsageError(f"{sample.name}: {len(found)} choices; write 2 to {len(LETTERS)} with {BETWEEN} between them")
    return found


def right(sample: Sample) -> int:
    """The place of the right choice, by its letter, its number from 0, or its text."""
    choices, answer = choices_of(sample), str(sample[LABEL]).strip()
    ways = (answer in choices and choices.index(answer), _letter(answer), answer.isdecimal() and int(answer))
    found = next((place for place in ways if place is not False), len(choices))
    if found >= len(choices):
        raise UsageError(f"{sample.name}: the answer {answer!r} is none of its {len(choices)} choices")
    return found


def _letter(answer: str) -> int | bool:
    return LETTERS.index(answer.upper()) if len(answer) == 1 and answer.upper() in LETTERS else False


def prompt(sample: Sample) -> str:
    """The question, its choices with letters, and `Answer:`."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices_of(sample), strict=False)]
    return "\n".join([str(sample[TEXT]), *lines, "Answer:"])
