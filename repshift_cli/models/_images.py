"""Which files are images: without torch, so that a wrong path is refused before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path

from repshift_cli.records import UsageError

_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def image_files(place: str) -> list[Path]:
    """The images of a file or a folder, sorted by name; UsageError where there is none."""
    path = Path(place)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"no such image or folder: {place}")
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in _IMAGES)
    if not files:
        raise UsageError(f"no images in {place} (looked for {', '.join(sorted(_IMAGES))})")
    return files
