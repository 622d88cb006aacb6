"""One file per question about a model (why a token can go), and what a question is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from repshift_cli.records import Case, Subject, call
from repshift_cli.records.inspection import Answer


@dataclass(frozen=True)
class Settings:
    """How much is looked at, and the thresholds of the literature.

    `left_out`: so many tokens of each input are left out one by one, after each of `blocks` (empty: all). A token is a
    sink where its mean attention is above `epsilon` (Gu et al. 2025), a head is dormant where the norm of its output is
    below `dormant` times the mean of its block (Sandoval-Segura et al. 2025). `packed` documents are packed into one
    sequence, 1: none are.
    """

    left_out: int = 32
    blocks: tuple[int, ...] = ()
    epsilon: float = 0.3
    dormant: float = 0.5
    packed: int = 1
    seed: int = 0


Change = Callable[[Subject], AbstractContextManager[Any]]
"""Something in a model that is changed within a context."""


@dataclass(frozen=True)
class Judged:
    """A model's score on labelled data with its interval, and the difference to the untouched model's with its own.

    `difference` is (None, None, None) for the untouched model itself.
    """

    metric: str
    unit: str
    samples: int
    score: tuple[float | None, float | None, float | None]
    difference: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Look:
    """A model made ready to be looked at, unpruned, with its inputs one by one (batches of one).

    Within `active()` the case's attention is bound, and no gradients are kept. `others` make the same model ready at
    the other lengths that were asked for, `beside` are the same with other attention bound. `tell(share)` says how far
    a question is, 0 to 1. `judge`, where labelled data was named, judges the untouched model, first, and the model
    within each of the changes that it is given by name.
    """

    case: Case
    subject: Subject
    active: Callable[[], AbstractContextManager[Any]]
    inputs: tuple[Any, ...]
    settings: Settings = Settings()
    others: tuple[Callable[[], Look], ...] = ()
    beside: tuple[Look, ...] = ()
    judge: Callable[[Mapping[str, Change]], Sequence[Judged]] | None = None
    tell: Callable[[float], None] = lambda share: None

    def run(self, inputs: Any) -> Any:
        """The model on these inputs; to be called within `active()`."""
        return call(self.subject.module, inputs)


class Question(Protocol):
    """A question: a file of this room, named as `--question` names it; the first line of its docstring is the help."""

    RANK: int
    """Its place among the answers."""

    def unanswerable(self, look: Look) -> str | None:
        """Why this model cannot be asked, or None."""

    def answer(self, look: Look) -> Answer:
        """What was found, as arrays that name their axes, and the sentences that say what they amount to."""
