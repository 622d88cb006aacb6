"""How the values of a sweep's options are written: one, a list, a range, or the option repeated.

A value is written as one (`0.6`), a list (`0.5,0.7`), a range with both ends (`0.3:0.9:0.1`), or by repeating the
option; `1,4,7` for `layers` is one schedule, a repeated `layers` is several, `1:12` sweeps schedules of one layer. With
`per_layer` a list is one schedule too for `keep` and for what may differ from layer to layer.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from decimal import Decimal, InvalidOperation
from typing import Any

from repshift_cli.records import (
    DTYPES,
    REMOVALS,
    Keep,
    Option,
    UsageError,
    Value,
    keep_text,
    protection,
    removals,
    written,
)
from repshift_cli.registry import method_options, ranked

MOST_VALUES = 1000
"""A range of more values than this is a slip of the pen."""

LARGEST = 0
"""The batch `max`: the largest that fits, which is found before the cases are planned."""

MOST_DIGITS = 12
"""No option means a number with more digits before or after the point; `1e999999999` would take gigabytes."""


def parse(name: str, value: Any, per_layer: bool = False) -> Any:
    """The values of one option as `Axes` holds them; UsageError names the option and what to write instead."""
    try:
        return parser_of(name, per_layer)(value)
    except ValueError as error:
        raise UsageError(f"--{name.replace('_', '-')}: {error}") from error


def parser_of(name: str, per_layer: bool = False) -> Callable[[Any], Any]:
    """What reads the option of that name, a reduction method's own among them; ValueError where there is none.

    With `per_layer` a list is one value with a part for each layer, where the option can have such.
    """
    if name in PARSERS:
        return _keeps_per_layer if per_layer and name == "keep" else PARSERS[name]
    own = own_options()
    if name in own:
        return _per_layer(own[name]) if per_layer and own[name].per_layer else _option_axis(own[name])
    known = sorted([*PARSERS, *own])
    raise ValueError(f"unknown option; {near(name, known)}a profile takes {', '.join(known)}")


def own_options() -> dict[str, Option]:
    """The options of reduction methods that a sweep takes beside `PARSERS`, whose names they cannot have."""
    return {name: option for name, option in method_options().items() if name not in PARSERS}


def near(name: str, known: Iterable[str]) -> str:
    """`did you mean a, b? `, or nothing where no name is near."""
    near = difflib.get_close_matches(name, list(known), n=3)
    return f"did you mean {', '.join(near)}? " if near else ""


# --- values ---------------------------------------------------------------------------------------------------------


def numbers(text: str) -> tuple[float, ...]:
    """Decimals of a list or a range with both ends: `0.3:0.9:0.1` is 0.3, 0.4, ... 0.9, without binary dust."""
    return tuple(float(n) for piece in _split(text) for n in _expand(piece, whole=False))


def integers(text: str) -> tuple[int, ...]:
    """Whole numbers of a list or a range with both ends: `1:9:4` is 1, 5, 9 and `1:3` is 1, 2, 3."""
    return tuple(int(n) for piece in _split(text) for n in _expand(piece, whole=True))


def schedules(text: str) -> tuple[tuple[int, ...], ...]:
    """Pruning schedules: `1,4,7` is one with three layers, `1:12` is twelve with one layer each, `all` all blocks."""
    if text.strip() == "all":
        return ((),)
    if ":" not in text:
        return (integers(text),)
    if "," in text:
        raise ValueError(f"{text!r} mixes a list and a range; repeat the option for several schedules")
    return tuple((layer,) for layer in integers(text))


def _split(text: str) -> list[str]:
    pieces = [piece.strip() for piece in text.split(",")]
    if not all(pieces):
        raise ValueError(f"{text!r} has an empty value; write one like 1, a list like 1,2 or a range like 1:9:4")
    return pieces


def _expand(piece: str, whole: bool) -> list[Decimal]:
    """One number, or every number of `first:last:step`, whose step is 1 for whole numbers where it is left out."""
    ends = [_decimal(end.strip(), whole) for end in piece.split(":")]
    if len(ends) == 1:
        return ends
    if len(ends) > 3 or (len(ends) == 2 and not whole):
        raise ValueError(f"{piece!r} is no range; write first:last:step, like {'1:9:4' if whole else '0.3:0.9:0.1'}")
    first, last, step = ends if len(ends) == 3 else [*ends, Decimal(1)]
    if step <= 0 or first > last:
        raise ValueError(f"{piece!r} is empty; a range goes up, with a step above 0")
    count = int((last - first) / step) + 1
    if count > MOST_VALUES:
        raise ValueError(f"{piece!r} has {count} values; a range may have {MOST_VALUES}")
    return [first + i * step for i in range(count)]


def _decimal(text: str, whole: bool) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal("nan")
    if not number.is_finite() or abs(number.adjusted()) > MOST_DIGITS or (whole and number != int(number)):
        raise ValueError(f"{text!r} is not a {'whole ' if whole else ''}number")
    return number


# --- one parser per kind of option ------------------------------------------------------------------------------------


def _texts(value: Any) -> list[str]:
    """The value as text, one piece per repetition: options come as text, profiles as text, numbers or lists of them."""
    values = value if isinstance(value, (list, tuple)) else [value]
    for v in values:
        if isinstance(v, bool) or not isinstance(v, (str, int, float)):
            raise ValueError(f"{v!r} is neither text nor a number")
    if not values:
        raise ValueError("needs at least one value")
    return [str(v) for v in values]


def _unique(values: list[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _whole_axis(value: Any) -> tuple[int, ...]:
    found = _unique([n for text in _texts(value) for n in integers(text)])
    for n in found:
        if n < 1:
            raise ValueError(f"{n} is too small; it must be at least 1")
    return found


def _batch_axis(value: Any) -> tuple[int, ...]:
    words = [word for text in _texts(value) for word in _split(text)]
    try:
        return _unique([n for word in words for n in ((LARGEST,) if word == "max" else _whole_axis(word))])
    except ValueError as error:
        raise ValueError(f"{error}; max is the largest that fits") from error


def _keep_axis(value: Any) -> tuple[float, ...]:
    found = _unique([n for text in _texts(value) for n in numbers(text)])
    for n in found:
        if not 0 < n <= 1:
            raise ValueError(f"{n:g} is outside (0, 1]; it is the share of the tokens that stays, like 0.6")
    return found


def _keeps_per_layer(value: Any) -> tuple[Keep, ...]:
    """A list of shares, one for each layer, or several such."""
    found: list[Keep] = []
    for v in _lists(value, "[[0.9, 0.7]]"):
        keeps = tuple(n for text in _texts(v) for n in numbers(text))
        _keep_axis(list(keeps))
        if len(keeps) > 1 and 1 in keeps:
            raise ValueError(f"{keep_text(keeps)}: 1 drops nothing at its layer; leave that layer out of --layers")
        found.append(keeps if len(keeps) > 1 else keeps[0])
    return _unique(found)


def _per_layer(option: Option) -> Callable[[Any], tuple[Value, ...]]:
    """Values of an option that has one for each layer: texts with commas."""

    def parse_values(value: Any) -> tuple[Value, ...]:
        read = _option_axis(option)
        values = [[str(read(word)[0]) for t in _texts(v) for word in _split(t)] for v in _lists(value, "[[...]]")]
        return _unique([",".join(own) for own in values])

    return parse_values


def _lists(value: Any, example: str) -> list[Any]:
    """What is written for each schedule: a text or a list each."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) > 1 and not all(isinstance(v, (str, list, tuple)) for v in values):
        raise ValueError(f"with per-layer a list of lists is needed, like {example}")
    return values


def _remove_axis(value: Any) -> tuple[str, ...]:
    found = _words_axis(value)
    for word in found:
        if not any(removals(word, 2)):
            raise ValueError(f"{word!r} removes nothing; write 16 for each layer, or 30:0 for fewer at each")
    return found


def _layers_axis(value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of schedules, each a list of layers or text as on the command line."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, (list, tuple)) and any(isinstance(v, int) for v in values):
        together, apart = list(values), [[v] for v in values]
        raise ValueError(f"a list of schedules is needed: write [{together}] for one schedule or {apart} for several")
    found: list[tuple[int, ...]] = []
    for v in values:
        found += [_whole_list(v)] if isinstance(v, (list, tuple)) else [s for t in _texts(v) for s in schedules(t)]
    for schedule in found:
        _check_schedule(schedule)
    return _unique(found)


def _whole_list(value: Any) -> tuple[int, ...]:
    return tuple(n for text in _texts(value) for n in integers(text))


def _check_schedule(schedule: tuple[int, ...]) -> None:
    written = ",".join(map(str, schedule))
    if schedule and schedule[0] < 1:
        raise ValueError(f"{written} has a layer below 1; layers count blocks from 1")
    if list(schedule) != sorted(set(schedule)):
        raise ValueError(f"{written} must go up without repeats, like 1,4,7")


def _words_axis(value: Any) -> tuple[str, ...]:
    return _unique([word for text in _texts(value) for word in _split(text)])


def _variant_axis(value: Any) -> tuple[str, ...]:
    found = _words_axis(value)
    for word in found:
        if not re.fullmatch(r"[\w.:-]+(\+[\w.:-]+)?", word):
            raise ValueError(f"{word!r} is neither a back end, like flash, nor BACKEND+METHOD, like flash+repshift")
    return found


TORCH_NAMES = {
    "float32": "fp32",
    "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
}
"""What torch and other tools call the dtypes."""


def _dtype_axis(value: Any) -> tuple[str, ...]:
    return _choice_axis(DTYPES)([TORCH_NAMES.get(word, word) for word in _words_axis(value)])


def _choice_axis(known: tuple[str, ...]) -> Callable[[Any], tuple[str, ...]]:
    def parse_choices(value: Any) -> tuple[str, ...]:
        found = _words_axis(value)
        for word in found:
            if word not in known:
                raise ValueError(f"unknown value {word!r}; {near(word, known)}choose from {', '.join(known)}")
        return found

    return parse_choices


def _truths(text: str) -> tuple[bool, ...]:
    known = {"true": True, "false": False}
    for word in (words := _split(text)):
        if word not in known:
            raise ValueError(f"{word!r} is neither true nor false")
    return tuple(known[word] for word in words)


_VALUES_OF: dict[str, Callable[[str], Iterable[Value]]] = {
    "str": _split,
    "int": integers,
    "float": numbers,
    "bool": _truths,
}


def _option_axis(option: Option) -> Callable[[Any], tuple[Value, ...]]:
    """The values of a reduction method's own option, as it is declared."""
    if option.type == "str" and option.choices:
        return _choice_axis(tuple(map(str, option.choices)))

    def parse_values(value: Any) -> tuple[Value, ...]:
        values = value if isinstance(value, (list, tuple)) else [value]
        texts = _texts([written(v) if isinstance(v, bool) and option.type == "bool" else v for v in values])
        found = _unique([v for text in texts for v in _VALUES_OF[option.type](text)])
        for v in found:
            option.check(v)
        return found

    return parse_values


def text_of(value: Any) -> str:
    """The value itself, a text with something in it; ValueError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a text")
    return value


def _protect(value: Any) -> str:
    text = text_of(value).replace(" ", "")
    if protection(text) == (0, 0):
        raise ValueError(f"{text!r} protects nothing; write first:35,last:1")
    return text


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _one_of(known: tuple[str, ...]) -> Callable[[Any], str]:
    def parse_choice(value: Any) -> str:
        word = _one(value)
        if word not in known:
            raise ValueError(f"unknown value {word!r}; {near(word, known)}choose from {', '.join(known)}")
        return word

    return parse_choice


def _one_number(value: Any) -> Decimal:
    return _decimal(_one(value), whole=False)


def _one(value: Any) -> str:
    texts = _texts(value)
    if len(texts) != 1:
        raise ValueError("takes one value")
    return texts[0].strip()


def _count(least: int) -> Callable[[Any], int]:
    def parse_count(value: Any) -> int:
        number = int(_decimal(_one(value), whole=True))
        if number < least:
            raise ValueError(f"{number} is too small; it must be at least {least}")
        return number

    return parse_count


def _seconds(value: Any) -> float:
    number = float(_one_number(value))
    if number <= 0:
        raise ValueError(f"{number:g} is not above 0; it is a time in seconds")
    return number


def _share(value: Any) -> float:
    number = float(_one_number(value))
    if not 0 < number < 1:
        raise ValueError(f"{number:g} is outside (0, 1); it is a share, like 0.01 for 1%")
    return number


PARSERS: dict[str, Callable[[Any], Any]] = {
    "model": _words_axis,
    "batch": _batch_axis,
    "dtype": _dtype_axis,
    "image_size": _whole_axis,
    "frames": _whole_axis,
    "tokens": _whole_axis,
    "keep": _keep_axis,
    "remove": _remove_axis,
    "layers": _layers_axis,
    "per_layer": _flag,
    "variant": _variant_axis,
    "removal": _choice_axis(REMOVALS),
    "protect": _protect,
    "data": text_of,
    "weights": text_of,
    "device": text_of,
    "seed": _count(0),
    "cuda_graph": _flag,
    "compile": _flag,
    "hbm": _one_of(("auto", *ranked("counters"), "model", "off")),
    "budget": _seconds,
    "precision": _share,
    "rounds": _count(1),
    "warmup": _count(1),
    "threads": _count(1),
}
"""How each field of `Axes` but `options` is read; a profile's keys are these names and those of `method_options`."""
