"""Records to and from plain JSON values, and their JSON Schema. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, get_args, get_origin

from repshift_cli.records import SCHEMA_VERSION, Case, Measurement, Record, Run, case, run, visible
from repshift_cli.records.checks import CHECKS, leaf
from repshift_cli.records.text import UNPRINTABLE

OLDER: dict[type, Callable[[dict[str, Any]], dict[str, Any]]] = {
    Case: case.from_older,
    Measurement: run.measurement_from_older,
    Record: run.record_from_older,
}
"""What brings the JSON value of a record of an earlier schema into this one's shape."""


def to_plain(value: Any) -> Any:
    """A record as JSON values: dataclasses to dicts, tuples to lists, tuples of named values to dicts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {f.name: (f, getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {name: dict(v) if _is_object(f) else to_plain(v) for name, (f, v) in held.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: to_plain(v) for k, v in value.items()}
    return value


def _is_object(field: dataclasses.Field[Any]) -> bool:
    """Whether a field holds named values as a tuple of pairs, for a tuple can be hashed, and is an object in JSON."""
    return field.metadata.get("json") == "object"


def to_json(run: Any) -> str:
    """The text of a run file or of any record, numbers of a list on one line; ValueError for a number not finite."""
    text = json.dumps(to_plain(run), indent=1, ensure_ascii=False, allow_nan=False)
    return escaped(re.sub(r"\[\n[-+.\deE,\s]*\]", lambda found: " ".join(found[0].split()), text)) + "\n"


def escaped(text: str) -> str:
    """JSON whose strings hold nothing raw that could steer a terminal or a log; it says the same to whoever parses."""
    text = UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.replace("##[", "#\\u0023[")  # in a log of GitHub's runner `##[error]` is a command


def in_pieces(run: Any, records: Iterable[Any]) -> Iterator[str]:
    """The text that `to_json` gives of a run with these records, piece by piece, so that they are never all in memory.

    `records` are plain values or records; the run's own are left aside.
    """
    head, tail = to_json(dataclasses.replace(run, records=())).split(NO_RECORDS)
    yield head
    empty = True
    for record in records:
        text = to_json(record).rstrip("\n").replace("\n", "\n  ")
        yield ('\n "records": [\n  ' if empty else ",\n  ") + text
        empty = False
    yield (NO_RECORDS if empty else "\n ]") + tail


NO_RECORDS = '\n "records": []'
"""How a run's text has an empty list of them; one space of indentation is the top level."""


def from_plain(kind: Any, value: Any, where: str = "run") -> Any:
    """The record of type `kind` from JSON values; ValueError names the place that does not fit."""
    is_record, origin, args = _form_of(kind)
    if is_record:
        return _dataclass_from(kind, value, where)
    if origin is types.UnionType:
        several = next((kind for kind in args if get_origin(kind) is tuple), args[0])
        if value is None and types.NoneType in args:
            return None
        return from_plain(several if isinstance(value, list) else args[0], value, where)
    if origin is tuple:
        return tuple(from_plain(args[0], v, f"{where}[{i}]") for i, v in enumerate(_expect(list, value, where)))
    if origin is dict:
        return {visible(k): from_plain(args[1], v, f"{where}.{k}") for k, v in _expect(dict, value, where).items()}
    value = leaf(value, where)
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return _expect(kind, value, where)


@cache
def _form_of(kind: Any) -> tuple[bool, Any, tuple[Any, ...]]:
    """Whether a type is a dataclass, else what it is a generic of, and its arguments."""
    return dataclasses.is_dataclass(kind) and isinstance(kind, type), get_origin(kind), get_args(kind)


@cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], dict[str, dataclasses.Field[Any]]]:
    """The types of a dataclass' fields and the fields, by name."""
    return typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}


def _expect(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}: expected {kind.__name__}, found {type(value).__name__}")
    return value


def _dataclass_from(kind: Any, value: Any, where: str) -> Any:
    value = OLDER.get(kind, dict)(_expect(dict, value, where))
    hints, known = _fields_of(kind)
    for name in value:
        if name not in known:
            raise ValueError(f"{where}.{visible(name)}: not a field of {kind.__name__}")
    for name, f in known.items():
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}.{name}: missing")
    fields = {name: _field_from(known[name], hints[name], v, f"{where}.{name}") for name, v in value.items()}
    try:
        record = kind(**fields)
        complaint = CHECKS.get(kind, lambda _: None)(record)
    except ValueError as error:
        complaint = str(error)
    if complaint:
        raise ValueError(f"{where}: {complaint}")
    return record


def _field_from(field: dataclasses.Field[Any], kind: Any, value: Any, where: str) -> Any:
    if not _is_object(field):
        return from_plain(kind, value, where)
    for name, held in _expect(dict, value, where).items():
        if not isinstance(held, (str, int, float)):
            raise ValueError(f"{where}.{name}: expected a text, a number, true or false, found {type(held).__name__}")
    return tuple(leaf(value, where).items())


NAMED_VALUES = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
"""The JSON Schema of a tuple of named values."""


def json_schema(kind: Any = Run, title: str = f"repshift run file, version {SCHEMA_VERSION}") -> dict[str, Any]:
    """The JSON Schema (2020-12) of a record type, generated from the dataclasses above."""
    defs: dict[str, Any] = {}
    top = _schema_of(kind, defs)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **top,
        "$defs": defs,
    }


def _schema_of(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in defs:
            defs[kind.__name__] = {}
            hints = typing.get_type_hints(kind)
            defs[kind.__name__] = {
                "type": "object",
                "description": (kind.__doc__ or "").strip().split("\n")[0],
                "properties": {
                    f.name: NAMED_VALUES if _is_object(f) else _schema_of(hints[f.name], defs)
                    for f in dataclasses.fields(kind)
                },
                "required": [f.name for f in dataclasses.fields(kind)],
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, args = get_origin(kind), get_args(kind)
    if origin is types.UnionType:
        return {"anyOf": [_schema_of(kind, defs) for kind in args]}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(args[0], defs)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(args[1], defs)}
    names = {str: "string", int: "integer", float: "number", bool: "boolean", types.NoneType: "null"}
    return {"type": names[kind]} if kind in names else {}
