"""Hostile files by a fixed seed: JSON documents with one to three things changed that no program would have written."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

TEXTS = (
    "",
    "\x1b[31mred\x1b[0m",
    "a\nb",
    "::error::no",
    "=HYPERLINK(1)",
    "[bold]x[/bold]",
    "|`<script>",
    "\ud800",
    "\x00",
    "x" * 5000,
    "../../etc",
    "nan",
    "@team ![](x)",
)
NUMBERS = (0, -1, 1, 2**63, 10**400, -(10**400), 1e308, -1e308, 5e-324, 0.5, -0.0)
VALUES = (None, True, False, [], {}, [[]], [None], {"": None}, *NUMBERS, *TEXTS)

Place = tuple[Any, ...]


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """Every place of a JSON document, the top apart."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*here, key)
        yield from places(inner, (*here, key))


def mutate(document: Any, rng: random.Random) -> Any:
    """A copy with one to three changes: a value replaced, removed, doubled, wrapped, scaled, or moved elsewhere."""
    copy = json.loads(json.dumps(document))
    for _ in range(rng.randint(1, 3)):
        everywhere = list(places(copy))
        if not everywhere:
            break
        _change(copy, rng.choice(everywhere), everywhere, rng)
    return copy


def _change(document: Any, place: Place, everywhere: list[Place], rng: random.Random) -> None:
    *way, key = place
    holder = _at(document, way)
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, holder[key])
    elif kind == 2:
        holder[key] = [holder[key]]
    elif kind == 3 and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] * rng.choice(
            (-1, 0, 10**300, 1e-300, 10**400) if not isinstance(holder[key], float) else (-1, 0, 1e300)
        )
    elif kind == 4:
        holder[key] = json.loads(json.dumps(_at(document, rng.choice(everywhere))))
    elif kind == 5 and isinstance(holder, dict):
        holder[rng.choice(TEXTS)] = holder.pop(key)
    elif kind == 6 and isinstance(holder[key], list):
        holder[key] = holder[key][: rng.randrange(len(holder[key]) + 1)]
    else:
        holder[key] = rng.choice(VALUES)


def _at(document: Any, way: Any) -> Any:
    for key in way:
        document = document[key]
    return document


def spoiled(text: bytes, rng: random.Random) -> bytes:
    """The bytes cut short, one of them changed, or a piece of them doubled."""
    at = rng.randrange(len(text))
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at]
    if kind == 1:
        return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
    if kind == 2:
        return text[:at] + text[max(0, at - 50) :]
    return text[:at] + rng.choice((b"[" * 100_000, b"9" * 5000, b"1e999", b"NaN", b"\xff\xfe", b"\\ud800")) + text[at:]
