"""Inputs: random pixels, or real images read from a file or a folder (clips: `_clips`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repshift_cli.records import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}


def random_pixels(shape: Sequence[int], seed: int) -> Tensor:
    """Standard normal pixels (never zeros: they hide errors and can run faster), the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def image_files(place: str) -> list[Path]:
    """The images of a file or a folder, sorted by name; UsageError where there is none."""
    path = Path(place)
    if path.is_file():
        if path.suffix.lower() in VIDEOS:
            raise UsageError(f"the model takes images, and {place} is a clip; give an image or a folder of images")
        return [path]
    if not path.is_dir():
        raise UsageError(f"no such image or folder: {place}")
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGES)
    if not files:
        raise UsageError(f"the model takes images; no images in {place} (looked for {', '.join(sorted(IMAGES))})")
    return files


def load_images(
    place: str, size: int, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """All images of a file or folder as (M, 3, size, size): short side resized (bicubic), centre crop, normalised."""
    return normalised(image_pixels(place, size), mean, std)


def image_pixels(place: str, size: int) -> np.ndarray:
    """The same before they are normalised: (M, size, size, 3) of 0 to 255."""
    return np.stack([_one(file, size) for file in image_files(place)])


def normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., H, W, 3) of 0 to 255 as (..., 3, H, W), less `mean` and over `std` of 0 to 1."""
    scaled = (pixels.astype(np.float32) / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(scaled).movedim(-1, -3).contiguous()


def fitted(image: Any, size: int) -> np.ndarray:
    """(size, size, 3) of an image: short side resized (bicubic), centre crop."""
    from PIL import Image, ImageOps

    fit = ImageOps.fit(image.convert("RGB"), (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fit, dtype=np.uint8)


def _one(file: Path, size: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return fitted(image, size)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"cannot read the image {file}: {error}") from error


def refuse_pixels(name: str, image_size: int | None, frames: int | None) -> None:
    """UsageError where a model of tokens was given an option of pixels."""
    for option, value in (("--image-size", image_size), ("--frames", frames)):
        if value is not None:
            raise UsageError(f"{option} does not apply to {name}, which takes tokens: use --tokens")


def batches(pixels: Tensor, size: int) -> list[Tensor]:
    """`pixels` (M, ...) in batches of exactly `size`: the last one is filled up from the start, M < size repeats.

    Every batch is full, so that what is compared is the very shape that is timed.
    """
    count = -(-len(pixels) // size)
    rows = torch.arange(count * size) % len(pixels)
    return list(pixels[rows].split(size))
