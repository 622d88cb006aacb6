"""A cell of a sweep, and the words that its fields take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

Value = str | int | float | bool
"""What an option of a reduction method can be."""

Keep = float | tuple[float, ...]
"""The share of the tokens that stays at each layer: one for all, or as many as there are layers."""

METHODS_WITHOUT_PRUNING = "none"
OPERATIONS = ("mlp", "attention", "block")
REMOVALS = ("line", "token")
WITHOUT_ATTENTION = "none"
"""The back end of models that have no attention to choose."""
OPERATORS = "operators"
"""The `model` of a case that is an attention operator alone; its `options` are the sizes and the mask of the call."""
DTYPES = ("fp32", "bf16", "fp16")
EXECUTIONS = ("eager", "graph", "compile")
OLDER_OPTIONS = ("operation", "distance", "form")
"""The options that were fields of a case up to schema 3: they come first, in this order, so that keys stay the same."""


@dataclass(frozen=True)
class Case:
    """One cell of a sweep: hashable, printable, and its own key on disk.

    `keep` is the share of the tokens still there (prefix tokens apart) that stays at each layer of `layers`, or a tuple
    with one for each; `layers` count blocks from 1 and the cut is at the block's end. `protect` names leading and
    trailing tokens that stay beside the model's own protected ones (`first:35,last:1`); `removal` says how a grid (of a
    CNN) gets smaller, `length` how many tokens a sequence (of text) has. `remove` says how many tokens leave at each
    layer, in the place of `keep`, which is 1 then (see `tokens.removals`). `options` are those that the reduction
    method takes and that apply here, by name, in the order of `option_order`; a text with commas is a value for each
    layer (see `at`).
    """

    model: str
    input: str
    weights: str
    image_size: int | None
    frames: int | None
    batch: int
    dtype: str
    device: str
    attention: str
    pruning: str = METHODS_WITHOUT_PRUNING
    keep: Keep = 1.0
    layers: tuple[int, ...] = ()
    options: tuple[tuple[str, Value], ...] = field(default=(), metadata={"json": "object"})
    execution: str = "eager"
    seed: int = 0
    protect: str | None = None
    removal: str | None = None
    length: int | None = None
    remove: str | None = None

    def __post_init__(self) -> None:
        own = dict(self.options)
        object.__setattr__(self, "options", tuple((name, own[name]) for name in option_order(own)))

    def option(self, name: str) -> Any:
        """The value of an option of the reduction method; None where it has none here."""
        return dict(self.options).get(name)

    def with_options(self, **values: Value) -> Case:
        """The case with these options in the place of its own."""
        return replace(self, options=tuple(values.items()))

    @property
    def rate(self) -> str:
        """How many tokens leave at each layer, as it was asked for: the share that stays, or their number."""
        return keep_text(self.keep) if self.remove is None else self.remove

    def at(self, layer: int) -> Case:
        """The case as it is at one of its layers: an option that has a value for each layer has that layer's."""
        place, own = self.layers.index(layer), dict(self.options)
        apart = {n: v.split(",") for n, v in own.items() if isinstance(v, str) and "," in v}
        return self.with_options(**own | {name: values[place] for name, values in apart.items()}) if apart else self

    @property
    def variant(self) -> str:
        """`flash`, or `flash+repshift`: the attention back end and the pruning method."""
        return self.attention if self.pruning == METHODS_WITHOUT_PRUNING else f"{self.attention}+{self.pruning}"

    @property
    def group(self) -> tuple[Any, ...]:
        """What cases must share so that one model and one input serve them all and their times may be compared."""
        return (
            self.model,
            self.weights,
            self.input,
            self.image_size,
            self.frames,
            self.batch,
            self.dtype,
            self.device,
            self.seed,
            self.protect,
            self.length,
            self.options if self.model == OPERATORS else (),
        )

    @property
    def schedule(self) -> tuple[Any, ...]:
        """What two pruned cases must share so that they run on the same numbers of tokens."""
        return (self.keep, self.layers, self.execution, self.removal, self.remove)

    @property
    def key(self) -> str:
        """A readable name, unique within a run: every field that was set, in the order of the declaration."""
        set_here = {name: value for name, value in self.values.items() if value is not None and value != ()}
        return " ".join(f"{name}={written(value)}" for name, value in set_here.items())

    @property
    def values(self) -> dict[str, Any]:
        """What the case says, by name: every field in the order of the declaration, the options in their place."""
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {k: v for name, value in named.items() for k, v in (value if name == "options" else ((name, value),))}


def names_of(cases: Iterable[Case]) -> list[str]:
    """The names in the `values` of these cases, in order; what older schemas had as fields is always among them."""
    options = option_order([*OLDER_OPTIONS, *(name for case in cases for name, _ in case.options)])
    fields = (f.name for f in dataclasses.fields(Case))
    return [name for field in fields for name in (options if field == "options" else (field,))]


def from_older(plain: dict[str, Any]) -> dict[str, Any]:
    """The JSON value of a case as this schema has it, from that of schema 1 to 3; this schema's own as it is."""
    if "options" in plain:
        return plain
    options = {name: plain[name] for name in OLDER_OPTIONS if plain.get(name) is not None}
    return {name: value for name, value in plain.items() if name not in OLDER_OPTIONS} | {"options": options}


def option_order(names: Iterable[str]) -> list[str]:
    """The names of options in the order that they have everywhere: those of older schemas, then by the alphabet."""
    known = set(names)
    return [*(name for name in OLDER_OPTIONS if name in known), *sorted(known.difference(OLDER_OPTIONS))]


def keep_text(keep: Keep) -> str:
    """`0.6`, or `0.9,0.7` of a share for each layer."""
    return ",".join(f"{share:g}" for share in (keep if isinstance(keep, tuple) else (keep,)))


def written(value: Any) -> str:
    """A value as it is typed and shown: `true`, `0.75`, `l2`, `1,4,7`."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
