"""What a sweep asks for: options become `Axes`, one tuple of values per axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repshift_cli.records import Keep, Value
from repshift_cli.records.json_codec import to_plain
from repshift_cli.sweep.parsing import own_options, parse


@dataclass(frozen=True)
class Axes:
    """A sweep.

    An empty `image_size`, `frames` or `tokens` means the model's own, an empty `batch` 1 or that of your own inputs, an
    empty `layers` one layer at a quarter of the depth, an empty schedule in it all blocks, an empty `removal` the
    model's default, an empty `dtype` bf16 on CUDA and fp32 on a CPU; a None means the default of whoever reads it.
    `remove` stands in the place of `keep`. With `per_layer` a `keep`, and an option that can, may hold a value for each
    layer. `options` are the values of what belongs to reduction methods alone
    (`registry.method_options`), by name; what is not among them has its declared default.
    """

    model: tuple[str, ...] = ("vit_b",)
    batch: tuple[int, ...] = ()
    dtype: tuple[str, ...] = ()
    image_size: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    keep: tuple[Keep, ...] = (0.6,)
    remove: tuple[str, ...] = ()
    layers: tuple[tuple[int, ...], ...] = ()
    per_layer: bool = False
    variant: tuple[str, ...] = ("vanilla", "flash", "flash+repshift")
    options: tuple[tuple[str, tuple[Value, ...]], ...] = ()
    removal: tuple[str, ...] = ()
    protect: str | None = None
    data: str | None = None
    weights: str | None = None
    device: str = "auto"
    seed: int = 0
    cuda_graph: bool = False
    compile: bool = False
    hbm: str = "auto"
    budget: float | None = None
    precision: float | None = None
    rounds: int | None = None
    warmup: int | None = None
    threads: int | None = None

    @classmethod
    def from_options(cls, given: Mapping[str, Any]) -> Axes:
        """Axes from options as typed (text, numbers, lists of them); what is absent, None or empty has its default."""
        per_layer = given.get("per_layer") is True
        values = {name: parse(name, value, per_layer) for name, value in given.items() if _is_given(value)}
        own = tuple((name, values.pop(name)) for name in own_options() if name in values)
        return cls(**values, options=own)

    def as_options(self) -> dict[str, Any]:
        """What is set, by name, as plain values: what a run file stores and `from_options` reads."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "options"}
        named["layers"] = [schedule or "all" for schedule in self.layers]
        if self.per_layer:
            named["keep"] = [keep if isinstance(keep, tuple) else (keep,) for keep in self.keep]
        plain: dict[str, Any] = to_plain(named | dict(self.options))
        return {name: value for name, value in plain.items() if value not in (None, [], False)}


def names() -> tuple[str, ...]:
    """The names of all options of a sweep."""
    return (*(f.name for f in dataclasses.fields(Axes) if f.name != "options"), *own_options())


def merge(profile: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A profile's options with the ones given explicitly in their place; the profile's title and thresholds go."""
    options = {name: value for name, value in profile.items() if name not in ("title", "thresholds")}
    return options | {name: value for name, value in given.items() if _is_given(value)}


def _is_given(value: Any) -> bool:
    return value is not None and value not in ((), [])
