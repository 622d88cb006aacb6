"""A dataset saved on disk by the package `datasets`, or `hub:NAME` where the hub can be reached (extra `eval`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repshift_cli.evaluation.datasets import chosen_split, missing, no_split
from repshift_cli.evaluation.datasets.csv import of_rows
from repshift_cli.evaluation.samples import Sample
from repshift_cli.models.inputs.hub import hub_answers
from repshift_cli.records import UsageError

RANK = 5
MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
HUB = "hub:"


def unavailable() -> str | None:
    """Why it cannot be read here, or None."""
    return missing("datasets", "datasets", "eval")


def takes(place: str) -> bool:
    """A folder that `save_to_disk` has written, or a name of the hub."""
    return place.startswith(HUB) or any((Path(place) / mark).is_file() for mark in MARKS)


def read(place: str, split: str | None) -> Sequence[Sample]:
    """Its rows, pictures as the bytes or the paths that they are stored as, labels by their names."""
    reachable = not place.startswith(HUB) or hub_answers()  # in this order, for the package asks when imported
    import datasets

    try:
        found: Any = _from_hub(place, split) if place.startswith(HUB) else datasets.load_from_disk(place)
    except Exception as error:  # whatever the hub, the disk or the format may say
        away = "" if reachable else "; the hub does not answer, and what a folder holds needs none: save_to_disk"
        raise UsageError(f"cannot load {place}: {' '.join(str(error).split())[:200]}{away}") from error
    if isinstance(found, datasets.DatasetDict):
        found = found[chosen_split(place, list(found), split)]
    elif split is not None and not place.startswith(HUB):
        raise no_split(place, split, ())
    names = {}
    for name, feature in found.features.items():
        if isinstance(feature, (datasets.Image, datasets.Video)):
            found = found.cast_column(name, type(feature)(decode=False))
        elif isinstance(feature, datasets.ClassLabel):
            names[name] = feature.names
    rows = [{n: names[n][v] if n in names and v >= 0 else v for n, v in row.items()} for row in found]
    return of_rows(f"{place}/row", rows, None, lambda number: f"row {number}")


def _from_hub(place: str, split: str | None) -> Any:
    """`hub:NAME` or `hub:NAME:CONFIGURATION`: every split there is, or the one asked for, which alone is downloaded."""
    import datasets

    name, _, configuration = place.removeprefix(HUB).partition(":")
    return datasets.load_dataset(name, configuration or None, split=split)
