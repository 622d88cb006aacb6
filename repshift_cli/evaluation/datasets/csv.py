"""A CSV or TSV file with a column for the path of an image or for text, and one for the label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repshift_cli.evaluation.datasets import no_split
from repshift_cli.evaluation.samples import COLUMNS, IMAGE, Sample
from repshift_cli.records import UsageError

RANK = 10
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def takes(place: str) -> bool:
    """By its ending."""
    return Path(place).suffix.lower() in SEPARATORS


def read(place: str, split: str | None) -> Sequence[Sample]:
    """Its rows; with a column `split` those of the one asked for. Paths count from the file's folder."""
    file = Path(place)
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = list(csv.DictReader(text, delimiter=SEPARATORS[file.suffix.lower()], strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read {place} as {file.suffix[1:].upper()} in UTF-8: {error}") from error
    return of_rows(place, rows, split, lambda number: f"line {number + 2}")


def of_rows(place: str, rows: Sequence[dict[str, Any]], split: str | None, called: Any) -> list[Sample]:
    """Rows of a table as samples; UsageError where the split asked for is not in their column `split`."""
    splits = list(dict.fromkeys(str(row["split"]) for row in rows if row.get("split")))
    if split is not None and split not in splits:
        raise no_split(place, split, splits)
    folder = Path(place).parent
    found = []
    for number, row in enumerate(rows):
        if split is not None and row.get("split") != split:
            continue
        columns = {name: _value(folder, name, value) for name, value in row.items() if name and value is not None}
        found.append(Sample(called(number), columns))
    return found


def _value(folder: Path, name: str, value: Any) -> Any:
    """A path as one, counted from the table's folder; bytes of a picture as they are."""
    if isinstance(value, dict):  # as the package datasets stores pictures
        value = value.get("bytes") or value.get("path")
    if name.lower() in (*COLUMNS[IMAGE], "path2", "image2") and isinstance(value, str):
        return folder / value
    return value
