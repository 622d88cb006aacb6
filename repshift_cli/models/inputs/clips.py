"""Clips as input: frames of video files, read with PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from repshift_cli.machine.packages import install
from repshift_cli.models.inputs.images import IMAGENET_MEAN, IMAGENET_STD, IMAGES, VIDEOS, fitted, normalised
from repshift_cli.records import UsageError


def clip_files(place: str) -> list[Path]:
    """The clips of a file or a folder, sorted by name; UsageError where there is none, or nothing to read them with."""
    path = Path(place)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.suffix.lower() in VIDEOS)
        if not files:
            raise UsageError(f"the model takes video; no clips in {place} (looked for {', '.join(sorted(VIDEOS))})")
    elif not path.is_file():
        raise UsageError(f"no such clip or folder: {place}")
    elif path.suffix.lower() in IMAGES:
        raise UsageError(f"the model takes video, and {place} is an image; give a clip, like clip.mp4")
    else:
        files = [path]
    if find_spec("av") is None:
        raise UsageError(f"reading clips needs PyAV: {install('video')}")
    return files


def load_clips(
    place: str, frames: int, size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """All clips of a file or folder as (M, frames, 3, size, size), each frame made ready as an image is.

    A clip of n frames is cut into `frames` equal segments and gives the frame at the centre of each (`centres`).
    UsageError for a file that cannot be decoded, has no pictures, or has fewer frames than asked for.
    """
    return normalised(clip_pixels(place, frames, size), mean, std)


def clip_pixels(place: str, frames: int, size: int) -> np.ndarray:
    """The same before they are normalised: (M, frames, size, size, 3) of 0 to 255."""
    return np.stack([_one(file, frames, size) for file in clip_files(place)])


def centres(count: int, frames: int) -> list[int]:
    """The places, from 0, of the centres of `frames` equal segments of `count` frames: 4 of 8 are 1, 3, 5, 7."""
    return [(2 * i + 1) * count // (2 * frames) for i in range(frames)]


def _one(file: Path, frames: int, size: int) -> np.ndarray:
    """(frames, size, size, 3)."""
    return np.stack([fitted(image, size) for image in frames_of(file, frames)])


def frames_of(file: Path | BytesIO, frames: int) -> list[Any]:
    """So many images of a clip, at the centres of equal segments, in two passes: what a container says of its length
    is not always so."""
    count = sum(1 for _ in _decoded(file))
    if count < frames:
        raise UsageError(
            f"{file} has {count} frames, fewer than the {frames} of the model; give a longer clip or fewer --frames"
        )
    wanted = centres(count, frames)
    return [frame.to_image() for place, frame in enumerate(_decoded(file)) if place in wanted]


def _decoded(file: Path | BytesIO) -> Iterator[Any]:
    """The frames of the first video stream; a decoder that meets damage stops instead of guessing the picture."""
    import av

    try:
        if isinstance(file, BytesIO):
            file.seek(0)
        with av.open(str(file) if isinstance(file, Path) else file) as container:
            if not container.streams.video:
                raise UsageError(f"{file} has no pictures; give a clip with a video stream")
            stream = container.streams.video[0]
            stream.codec_context.options = {"err_detect": "explode"}
            yield from container.decode(stream)  # type: ignore[union-attr]
    except av.error.FFmpegError as error:
        raise UsageError(f"cannot read the clip {file}: {error.strerror}") from error
