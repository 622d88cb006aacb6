"""One file per model family, and what a family is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from repshift_cli.records import Case, Facts, Subject


def unsaid(name: Any) -> None:
    """A family that says nothing of a model's images, classes or other tower."""


class Family(Protocol):
    """A model family: a file of this room, or of another package by the entry point group `repshift.models`."""

    ALIASES: Mapping[str, Any] = {}
    """The names that `--model` takes, a literal, with what the family makes of them. A family of another package
    without any is called by the name of its entry point."""

    preprocessing: Callable[[str], Any] = unsaid
    """How the named model wants its images, an `inputs.preprocessing.Preprocessing`; None where nobody says."""

    class_names: Callable[[str], Mapping[int, str] | None] = unsaid
    """What the classes of the named model's logits are called, by their place; None where nobody says."""

    towers: Callable[[Case], Any] = unsaid
    """The text tower (`base.towers.TextTower`) beside the vision tower that `build` makes, or None."""

    def facts(self, name: str, image_size: int | None, frames: int | None, weights: str | None) -> Facts:
        """What planning must know of a model before it is built; UsageError for sizes that it cannot have.

        A family of sequences takes two arguments more: `length` (their tokens) and `data` (where they come from).
        """

    def build(self, case: Case) -> Subject:
        """The model with its weights and inputs, on the case's device and in its dtype."""
