"""Tar files in WebDataset's layout: `0001.jpg` and `0001.cls` are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from repshift_cli.evaluation.samples import IMAGE, LABEL, TEXT, Blob, Sample
from repshift_cli.records import UsageError

RANK = 30
MEDIA = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "gif", "mp4", "avi", "mkv", "webm", "mov")
LABELS = ("cls", "label")


def takes(place: str) -> bool:
    """A tar file, or a folder of them."""
    path = Path(place)
    return path.suffix.lower() == ".tar" or (path.is_dir() and any(path.glob("*.tar")))


def read(place: str, split: str | None) -> Sequence[Sample]:
    """The samples of every tar, in order; pictures stay where they are. A split is part of the tars' names."""
    path = Path(place)
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if split is not None:
        tars = [tar for tar in tars if split in tar.name]
        if not tars:
            raise UsageError(f"--split {split}: no tar in {place} has that in its name")
    return [sample for tar in tars for sample in _samples(tar)]


def _samples(tar: Path) -> list[Sample]:
    """What a tar holds, its small files read."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with tarfile.open(tar) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                columns = found.setdefault(f"{folder}/{key}".strip("/"), {})
                columns |= _column(archive, member, ending.lower(), tar)
    except (OSError, tarfile.TarError) as error:
        raise UsageError(f"cannot read {tar} as tar: {error}") from error
    return [Sample(f"{tar.name}:{key}", columns) for key, columns in found.items() if columns]


def _column(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str, tar: Path) -> dict[str, Any]:
    if ending in MEDIA:
        return {IMAGE: Blob(tar, member.offset_data, member.size)}
    file = archive.extractfile(member)
    text = file.read().decode("utf-8", "replace").strip() if file else ""
    if ending == "json":
        try:
            told = json.loads(text)
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}
    return {LABEL: text} if ending in LABELS else {TEXT: text} if ending == "txt" else {ending: text}
