"""Samples of a labelled data set: what each is called, its columns, and the order in which they are evaluated."""

from __future__ import annotations

import hashlib
import io
import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from repshift_cli.records import UsageError

IMAGE, TEXT, LABEL, PAIR, SCORE, CHOICES = "image", "text", "label", "pair", "score", "choices"
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}
COLUMNS = {
    IMAGE: ("image", "img", "path", "file", "filename", "file_name", "filepath", "clip", "video", "jpg", "png", "mp4"),
    TEXT: ("text", "sentence", "sentence1", "question", "content", "prompt", "txt", "caption"),
    LABEL: ("label", "class", "target", "category", "answer", "cls", "fine_label"),
    PAIR: ("pair", "text2", "sentence2", "image2", "path2", "match"),
    SCORE: ("score", "similarity", "similarity_score"),
    CHOICES: ("choices", "options"),
}
"""What the columns of a table are called here, with the names that are taken for them as they stand."""


@dataclass(frozen=True)
class Blob:
    """A picture or clip inside another file."""

    path: Path
    offset: int
    size: int


Media = Path | Blob | bytes


def opened(media: Media) -> BinaryIO:
    """The bytes of a picture or clip, to read; OSError where they cannot be had."""
    if isinstance(media, Path):
        return media.open("rb")
    if isinstance(media, bytes):
        return io.BytesIO(media)
    with media.path.open("rb") as file:
        file.seek(media.offset)
        return io.BytesIO(file.read(media.size))


def is_clip(media: Any) -> bool:
    """Whether a file holds a clip, by its ending."""
    return isinstance(media, Path) and media.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Sample:
    """One row: a name to call it by in a message, and its columns; pictures and clips are `Media`."""

    name: str
    columns: Mapping[str, Any]

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]


def renamed(samples: Sequence[Sample], given: Mapping[str, str]) -> list[Sample]:
    """The samples with their columns under the names of `COLUMNS`: those `given` (ours -> theirs), else as they fit;
    any other under its own.

    UsageError for a column that is not there.
    """
    there = list(dict.fromkeys(name for sample in samples[:1] for name in sample.columns))
    for ours, theirs in given.items():
        if ours not in COLUMNS:
            raise UsageError(f"--column {ours}: there is no such column; name one of {', '.join(COLUMNS)}")
        if theirs not in there:
            raise UsageError(f"--column {ours}={theirs}: the data has the columns {', '.join(there)}")
    lower = {name.lower(): name for name in reversed(there)}
    found = {ours: next((lower[n] for n in names if n in lower), None) for ours, names in COLUMNS.items()}
    found |= given
    taken = {ours: theirs for ours, theirs in found.items() if theirs is not None}
    rest = [name for name in there if name not in taken.values()]
    names = {**{name: name for name in rest}, **taken}
    return [replace(s, columns={ours: s.columns.get(theirs) for ours, theirs in names.items()}) for s in samples]


def need(samples: Sequence[Sample], columns: Iterable[str], what: str) -> None:
    """UsageError where a column that `what` reads is missing, or empty in some row."""
    there = samples[0].columns
    for column in columns:
        if column not in there:
            raise UsageError(
                f"{what} needs a column {column} (one of {', '.join(COLUMNS[column])}, or --column {column}=NAME); "
                f"the data has {', '.join(there) or 'none that is known'}"
            )
        if empty := [sample.name for sample in samples if sample.columns[column] in (None, "")]:
            raise UsageError(
                f"{len(empty)} of {len(samples)} samples have no {column}, like {', '.join(empty[:3])}: fill it in, or "
                "leave these rows out"
            )


def listing(samples: Sequence[Sample]) -> tuple[str, dict[str, int]] | None:
    """A digest of all samples, whatever their order, and the place of each by its name; None where names are shared.

    It tells other names, labels and texts, but not what a picture shows; where the data lies says nothing.
    """
    names = sorted(sample.name for sample in samples)
    if len(set(names)) < len(names):
        return None
    told = sorted(repr((s.name, [(n, _identity(v)) for n, v in sorted(_all_of(s).items())])) for s in samples)
    return hashlib.sha256("\n".join(told).encode("utf-8", "replace")).hexdigest(), {n: i for i, n in enumerate(names)}


def _all_of(sample: Sample) -> dict[str, Any]:
    """Its columns that are known here, and what a task has added to it."""
    more = {name: value for name, value in vars(sample).items() if name not in ("name", "columns")}
    return {name: value for name, value in sample.columns.items() if name in COLUMNS} | more


def _identity(value: Any) -> Any:
    if isinstance(value, Blob):
        return value.path.name, value.offset, value.size
    if isinstance(value, Path):
        return value.name
    return zlib.crc32(value) if isinstance(value, bytes) else value


def stratified(labels: Sequence[Any], seed: int) -> list[int]:
    """An order of the samples in which every beginning holds each label in proportion, drawn by the seed.

    So whatever is evaluated first, by a limit or until it is interrupted, stands for the whole.
    """
    places: dict[Any, list[int]] = defaultdict(list)
    for place, label in enumerate(labels):
        places[label].append(place)
    draw = random.Random(seed)
    keyed = []
    for label in sorted(places, key=str):
        own = places[label]
        draw.shuffle(own)
        keyed += [((rank + draw.random()) / len(own), place) for rank, place in enumerate(own)]
    return [place for _, place in sorted(keyed)]
