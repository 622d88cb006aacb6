"""A Parquet file or a folder of them: a column for pictures, paths or text, and one for the label (extra `eval`)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repshift_cli.evaluation.datasets import chosen_split, missing
from repshift_cli.evaluation.datasets.csv import of_rows
from repshift_cli.evaluation.samples import Sample
from repshift_cli.records import UsageError

RANK = 20
ENDINGS = (".parquet", ".pq")


def unavailable() -> str | None:
    """Why it cannot be read here, or None."""
    return missing("pyarrow", "pyarrow", "eval")


def takes(place: str) -> bool:
    """By its ending, or by what lies in the folder or its folder `data`, as the hub has it."""
    return Path(place).suffix.lower() in ENDINGS or bool(_parts(place))


def read(place: str, split: str | None) -> Sequence[Sample]:
    """Its rows; with a column `split` those of the one asked for. Paths count from the file's folder.

    Of files in a folder the split is what their names begin with: `test-00000-of-00003.parquet`.
    """
    files = _parts(place)
    if not files:
        return _rows(Path(place), split)
    splits = {file: file.stem.partition("-")[0] for file in files}
    chosen = chosen_split(place, list(dict.fromkeys(splits.values())), split)
    return [sample for file in files if splits[file] == chosen for sample in _rows(file, None)]


def _parts(place: str) -> list[Path]:
    path = Path(place)
    return sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")) if path.is_dir() else []


def _rows(file: Path, split: str | None) -> list[Sample]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
        names, rows = _class_names(table.schema.metadata or {}), table.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"cannot read {file} as Parquet: {str(error).splitlines()[0]}") from error
    for row in rows:
        row |= {name: known[row[name]] for name, known in names.items() if row.get(name) in range(len(known))}
    return of_rows(str(file), rows, split, lambda number: f"{file.name} row {number}")


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """By column, what the numbers of a label are called, where the package `datasets` has written it down: they need
    not be those of the model's classes."""
    try:
        features: dict[str, Any] = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {name: told["names"] for name, told in features.items() if told.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
