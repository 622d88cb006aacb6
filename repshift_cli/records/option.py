"""An option that belongs to a reduction method alone, as the method's file declares it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from repshift_cli.records.case import Case, Value, written

TYPES: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True)
class Option:
    """One option of one or several methods; a sweep takes a list of its values.

    `choices` are all values that there are, `least` and `most` the ends of a number, both allowed. Without a `default`
    the case names no value; `operation` alone has the model's. The option does not apply to cases that have one of the
    values `unless`. With `per_layer` a case may name a value for each of its layers: a text, its values with commas.
    """

    name: str
    type: str
    help: str
    default: Value | None = None
    choices: tuple[Value, ...] = ()
    least: float | None = None
    most: float | None = None
    unless: tuple[tuple[str, Value], ...] = ()
    per_layer: bool = False
    methods: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """The methods that take it."""

    @classmethod
    def declared(cls, name: str, literal: Any) -> Option:
        """The option of a declaration like {"type": "float", "default": 0.75, "help": "..."}; ValueError says what is
        wrong with it."""
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name for an option; write it in small letters")
        if name in {f.name for f in dataclasses.fields(Case)}:
            raise ValueError(f"{name!r} is what every case has; call the option otherwise")
        known = {f.name for f in dataclasses.fields(cls)} - {"name", "methods"}
        if not isinstance(literal, Mapping) or not {"type", "help"} <= literal.keys() <= known:
            raise ValueError(f"{name} is declared by a dict with type, help and, where needed, {', '.join(_OPTIONAL)}")
        if literal["type"] not in TYPES:
            raise ValueError(f"{name}: type is one of {', '.join(TYPES)}")
        if not all(isinstance(literal.get(end, 0), (int, float)) for end in ("least", "most")):
            raise ValueError(f"{name}: least and most are numbers")
        unless = tuple(dict(literal.get("unless") or {}).items())
        option = cls(name, **{**literal, "choices": tuple(literal.get("choices") or ()), "unless": unless})
        for value in (*option.choices, option.default):
            if value is not None:
                option.check(value)
        return option

    def check(self, value: Any) -> None:
        """ValueError where the option cannot have this value."""
        kind: Any = TYPES[self.type]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{self.name}: {value!r} is no {self.type}")
        if self.choices and value not in self.choices:
            raise ValueError(f"unknown value {value!r}; choose from {', '.join(map(str, self.choices))}")
        if self.least is not None and value < self.least:
            raise ValueError(f"{value} is too small; it must be at least {self.least:g}")
        if self.most is not None and value > self.most:
            raise ValueError(f"{value} is too large; it must be at most {self.most:g}")

    @property
    def text(self) -> str:
        """The help text with the default."""
        return self.help if self.default is None else f"{self.help} (default: {written(self.default)})"


_OPTIONAL = ("default", "choices", "least", "most", "unless", "per_layer")
