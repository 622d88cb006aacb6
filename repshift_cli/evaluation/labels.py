"""The labels of a data set matched to the classes of a model; a mapping that does not fit is refused with examples."""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from repshift_cli.records import UsageError

WORDNET = re.compile(r"n\d{8}")
IMAGENET = 1000


def matched(labels: Iterable[str], count: int, names: Mapping[int, str] | None) -> tuple[dict[str, int], str]:
    """The class (0 to count - 1) of every label, and in words how they were matched.

    By the names that the model gives its classes; else by number; else, where there are as many labels as classes and
    nothing names these, in sorted order, which is how torchvision numbers folders. UsageError with examples otherwise.
    """
    known = sorted(set(labels))
    if len(known) < 2:
        raise UsageError(f"the data has one class only ({known[0]}): accuracy over one class says nothing of a model")
    ways = (_wordnet, _by_name, _by_number, _in_order)
    found = next((way for way in (one(known, count, names) for one in ways) if way is not None), None)
    if found is None:
        raise UsageError(_refusal(known, count, names))
    return found


def _by_name(known: Sequence[str], count: int, names: Mapping[int, str] | None) -> tuple[dict[str, int], str] | None:
    """Whole names first; then the first of several synonyms, where it names one class."""
    for reading in (lambda name: name, lambda name: name.split(",")[0]):
        places: dict[str, list[int]] = {}
        for place, name in (names or {}).items():
            places.setdefault(_plain(reading(name)), []).append(place)
        if all(len(places.get(_plain(label), ())) == 1 for label in known):
            return {label: places[_plain(label)][0] for label in known}, "by the names of the model's classes"
    return None


def _plain(name: str) -> str:
    """Small letters, with blanks for what stands for them in the names of folders."""
    return re.sub(r"[\s_-]+", " ", str(name)).strip().lower()


def _by_number(known: Sequence[str], count: int, names: Mapping[int, str] | None) -> tuple[dict[str, int], str] | None:
    numbers = {label: int(label) for label in known if re.fullmatch(r"\d{1,9}", label)}
    if len(numbers) < len(known) or max(numbers.values()) >= count:
        return None
    return numbers, "by number"


def _wordnet(known: Sequence[str], count: int, names: Mapping[int, str] | None) -> tuple[dict[str, int], str] | None:
    """ImageNet's folders, named by WordNet id: sorted, all thousand of them are the classes 0 to 999.

    A part of them is not numbered from 0, which is the trap: their places must come from the model's own names, or
    from timm's list.
    """
    if not all(WORDNET.fullmatch(label) for label in known) or count != IMAGENET:
        return None
    if len(known) == IMAGENET:
        return {label: place for place, label in enumerate(known)}, "by WordNet id, sorted"
    places = {_plain(name): place for place, name in (names or {}).items()} | _imagenet()
    if not all(label in places for label in known):
        return None
    return {label: places[label] for label in known}, "by WordNet id"


def _imagenet() -> dict[str, int]:
    """The class of every WordNet id of ImageNet-1k, from timm; nothing without it."""
    try:
        timm = importlib.import_module("timm.data")
        return {name: place for place, name in enumerate(timm.ImageNetInfo().label_names())}
    except (ImportError, RuntimeError, OSError):
        return {}


def _in_order(known: Sequence[str], count: int, names: Mapping[int, str] | None) -> tuple[dict[str, int], str] | None:
    if names is not None or len(known) != count:
        return None
    return {label: place for place, label in enumerate(known)}, "in sorted order, for nothing names the model's classes"


def _refusal(known: Sequence[str], count: int, names: Mapping[int, str] | None) -> str:
    """The labels that fit nothing, beside what the model knows, and what to do."""
    there = Counter(text for name in (names or {}).values() for text in {_plain(name), _plain(name.split(",")[0])})
    strange = [label for label in known if there[_plain(label)] != 1]
    model = ", ".join(f"{place} {name!r}" for place, name in list((names or {}).items())[:3])
    told = f"classes are {model} ..." if model else f"{count} classes have no names"
    if all(WORDNET.fullmatch(label) for label in known):
        way = "WordNet ids of a part of ImageNet need timm's list of them (install the extra timm)"
    else:
        way = "rename the folders or the labels to the model's names or numbers, or take --task probe"
    some = ", ".join(map(repr, strange[:3]))
    return f"{len(strange)} of {len(known)} labels name no one class of the model, like {some}; its {told}: {way}"
