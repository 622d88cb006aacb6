"""A folder of images or clips with a folder for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repshift_cli.evaluation.datasets import chosen_split
from repshift_cli.evaluation.samples import IMAGE, LABEL, VIDEOS, Sample
from repshift_cli.records import UsageError

RANK = 90
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")


def takes(place: str) -> bool:
    """Any folder that nobody else takes."""
    return Path(place).is_dir()


def read(place: str, split: str | None) -> Sequence[Sample]:
    """The files of every class's folder, whatever their depth, in the order of their names (torchvision's convention).

    Folders called train, val or test above the classes are splits.
    """
    root = Path(place)
    splits = [f.name for f in _folders(root) if f.name.lower() in SPLITS and _folders(f)]
    if splits or split is not None:
        root = root / chosen_split(place, splits, split)
    found = [Sample(str(f.relative_to(root)), {IMAGE: f, LABEL: c.name}) for c in _folders(root) for f in _files(c)]
    if not found:
        loose = sum(f.suffix.lower() in IMAGES | VIDEOS for f in root.iterdir())
        raise UsageError(
            f"no images in {root}: a folder for each class is needed, like {root}/cat/1.jpg"
            + (
                f"; there are {loose} images or clips beside any class's folder, whose labels a CSV could give"
                if loose
                else ""
            )
        )
    return found


def _folders(root: Path) -> list[Path]:
    return sorted(f for f in root.iterdir() if f.is_dir() and not f.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGES | VIDEOS and f.is_file())
