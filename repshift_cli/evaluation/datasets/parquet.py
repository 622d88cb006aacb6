"""A Parquet file with a column for pictures, paths or text, and one for the label (extra `eval`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repshift_cli.evaluation.datasets import missing
from repshift_cli.evaluation.datasets.csv import of_rows
from repshift_cli.evaluation.samples import Sample
from repshift_cli.records import UsageError

RANK = 20


def unavailable() -> str | None:
    """Why it cannot be read here, or None."""
    return missing("pyarrow", "pyarrow", "eval")


def takes(place: str) -> bool:
    """By its ending."""
    return Path(place).suffix.lower() in (".parquet", ".pq")


def read(place: str, split: str | None) -> Sequence[Sample]:
    """Its rows; with a column `split` those of the one asked for. Paths count from the file's folder."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(place).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"cannot read {place} as Parquet: {str(error).splitlines()[0]}") from error
    return of_rows(place, rows, split, lambda number: f"row {number}")
