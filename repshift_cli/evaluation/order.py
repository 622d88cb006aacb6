"""What an evaluation is asked for, beside the sweep of variants: stored in the run file, so that it can be resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from repshift_cli.models.inputs.preprocessing import ASSUMED, INTERPOLATIONS, Preprocessing
from repshift_cli.records import UsageError
from repshift_cli.sweep import axes
from repshift_cli.sweep.axes import Axes

VARIANTS = ("flash", "flash+repshift", "flash+random", "flash+stride", "flash+lowest")
"""What is evaluated where nothing is said: a method that does not beat random dropping has shown nothing."""
BATCH = 32
ONE = ("model", "batch", "dtype", "image_size", "frames", "tokens")
"""Of these an evaluation takes one value: what it compares differs in nothing else than the variant."""


@dataclass(frozen=True)
class Order:
    """`columns` rename the data's columns (ours -> theirs)."""

    sweep: Axes
    data: str
    task: str = "classification"
    split: str | None = None
    train: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    preprocess: str | None = None
    limit: int | None = None
    until: float | None = None
    seeds: int = 1
    workers: int | None = None
    bench: bool = False
    neighbours: int | None = None
    refit: bool = False

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Order:
        """From options by name, as typed or as stored."""
        own = {f.name for f in dataclasses.fields(cls)} - {"sweep"}
        plain = {name: value for name, value in given.items() if name in own}
        if plain.get("data") is None:
            raise UsageError("--data is missing: a folder of images with a folder for each class, or a CSV")
        known = axes.names()
        asked = {name: value for name, value in given.items() if name in known and name != "data"}
        sweep = Axes.from_options({"variant": VARIANTS, "batch": BATCH} | asked)
        for name in ONE:
            if len(getattr(sweep, name)) > 1:
                raise UsageError(f"--{name.replace('_', '-')} takes one value here: only variants are compared")
        return cls(sweep, **plain)

    def as_options(self) -> dict[str, Any]:
        """What is set, by name."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "sweep"}
        given = {name: value for name, value in own.items() if value not in (None, {}) and value is not False}
        return self.sweep.as_options() | given


def preprocessing_of(text: str | None, base: Preprocessing) -> Preprocessing:
    """The checkpoint's own with what `resize=256,crop=224,interpolation=bilinear,mean=0.5,std=0.5/0.5/0.5` changes."""
    changes: dict[str, Any] = {}
    for piece in filter(None, (text or "").split(",")):
        name, _, value = piece.strip().partition("=")
        try:
            changes[name] = _READ[name](value)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"--preprocess: {piece!r} is none of resize=256, resize=none, crop=224, mean=0.5, std=0.5/0.5/0.5, "
                f"interpolation={'|'.join(INTERPOLATIONS)}"
            ) from error
    if changes:
        changes["whose"] = f"{base.whose}, changed by --preprocess" if base.whose != ASSUMED else "--preprocess"
    return dataclasses.replace(base, **changes)


def _three(text: str) -> tuple[float, ...]:
    values = tuple(float(piece) for piece in text.split("/"))
    if len(values) not in (1, 3):
        raise ValueError(text)
    return values * 3 if len(values) == 1 else values


def _pixels(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError(text)
    return value


def _named(text: str) -> str:
    if text not in INTERPOLATIONS:
        raise ValueError(text)
    return text


_READ = {
    "resize": lambda text: None if text == "none" else _pixels(text),
    "crop": _pixels,
    "interpolation": _named,
    "mean": _three,
    "std": _three,
}
