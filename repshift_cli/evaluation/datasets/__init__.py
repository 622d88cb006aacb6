"""How labelled data lies on the disk: one file per format, found by the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from repshift_cli import registry
from repshift_cli.evaluation.samples import Sample
from repshift_cli.records import UsageError

ROOM = "evaluation.datasets"


def nothing_missing() -> str | None:
    """A format that needs no other package."""
    return None


class Dataset(Protocol):
    """A format: a file of this room, or of another package by the entry point group `repshift.evaluation.datasets`."""

    RANK: int
    """A literal: formats are asked in this order whether a place is theirs."""

    unavailable: Callable[[], str | None] = nothing_missing
    """Why it cannot be read here (a package that is missing), or None."""

    def takes(self, place: str) -> bool:
        """Whether what lies there is of this format, by its name and what is in it."""

    def read(self, place: str, split: str | None) -> Sequence[Sample]:
        """Every sample in a fixed order, pictures not yet opened; UsageError for a split that is not there."""


def read(place: str, split: str | None) -> tuple[str, list[Sample]]:
    """The format and the samples of a place; UsageError where nothing reads it, or it holds none."""
    for name in registry.ranked(ROOM):
        part = registry.load(registry.find(ROOM, name))
        if part.takes(place):
            if reason := part.unavailable():
                raise UsageError(f"{place}: {reason}")
            samples = list(part.read(place, split))
            if not samples:
                raise UsageError(f"{place}: there are no samples in it")
            return name, samples
    what = "no format of data takes it" if Path(place).exists() else "there is no such file or folder"
    raise UsageError(f"{place}: {what}; `repshift eval --list` says what can be read")


def missing(module: str, package: str, extra: str) -> str | None:
    """Why a format cannot be read without that module, or None."""
    from repshift_cli.machine.packages import find_spec, install

    return None if find_spec(module) else f"reading it needs {package}: {install(extra)}"


def no_split(place: str, split: str, there: Sequence[str]) -> UsageError:
    """That a split is not among those there."""
    has = f"it has {', '.join(there)}" if there else "it has none; leave the name out, or name another place"
    return UsageError(f"{place} has no split {split!r}: {has}")


def chosen_split(place: str, there: Sequence[str], split: str | None) -> str:
    """The split asked for; without one the only one, or the one that is for testing. UsageError names those there."""
    if split is not None:
        if split not in there:
            raise no_split(place, split, there)
        return split
    if len(there) == 1:
        return there[0]
    raise UsageError(f"{place} has the splits {', '.join(there)}; name one, like --split {there[-1]}")
