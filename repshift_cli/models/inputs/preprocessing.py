"""How a checkpoint wants its images: resized, cropped and normalised as its image processor or timm's data say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers of them, which image processors store."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ASSUMED = "assumed, for nobody says what the weights were trained with: --preprocess does"


@dataclass(frozen=True)
class Preprocessing:
    """`crop` pixels of a side out of the middle, after the short side was made `resize` long.

    Without `resize` the whole image is made `crop` x `crop`, whatever its shape; `squashed` makes it `resize` x
    `resize` before the crop. Values of 0 to 1 less `mean`, over `std`. `whose` says who wants it so.
    """

    crop: int
    resize: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    squashed: bool = False
    whose: str = ASSUMED

    def at(self, size: int) -> Preprocessing:
        """The same for images of another size, the margin around the crop in proportion."""
        resize = None if self.resize is None else round(self.resize * size / self.crop)
        return dataclasses.replace(self, crop=size, resize=resize)

    @property
    def words(self) -> str:
        """What is done, in one line."""
        sides = "both sides" if self.squashed else "short side"
        first = "stretched" if self.resize is None else f"{sides} {self.resize}, centre crop"
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return f"{first} {self.crop} px, {self.interpolation}, mean {mean}, std {std} ({self.whose})"

    def pixels(self, image: Image) -> np.ndarray:
        """(crop, crop, 3) of 0 to 255."""
        image, by = image.convert("RGB"), INTERPOLATIONS[self.interpolation]
        if self.resize is None:
            return np.asarray(image.resize((self.crop, self.crop), by), dtype=np.uint8)
        width, height = image.size
        short = min(width, height)
        width, height = (self.resize if self.squashed else int(self.resize * side / short) for side in (width, height))
        left, top = round((width - self.crop) / 2), round((height - self.crop) / 2)
        box = (left, top, left + self.crop, top + self.crop)
        return np.asarray(image.resize((width, height), by).crop(box), dtype=np.uint8)


def of_processor(stored: Mapping[str, Any], size: int) -> Preprocessing:
    """What an image processor's file (`preprocessor_config.json`) says, for a model of images of `size` pixels."""
    crop, resize = size, _resized(stored)
    if stored.get("do_center_crop") and stored.get("crop_size"):
        crop = _side(stored["crop_size"])
    elif resize is not None and stored.get("crop_pct") and resize < 384:  # ConvNeXt's: the size is that of the crop
        crop, resize = resize, int(resize / stored["crop_pct"])
    elif resize is not None:
        crop = resize
    mean, std = _normalisation(stored)
    numbers = {int(number): name for name, number in INTERPOLATIONS.items()}
    return Preprocessing(
        crop,
        resize,
        numbers.get(stored.get("resample", 2), "bilinear"),
        mean,
        std,
        whose="the checkpoint's image processor",
    )


def of_timm(stored: Mapping[str, Any]) -> Preprocessing:
    """What timm's data configuration says (`crop_pct` of a square of `input_size`), as its `create_transform` does."""
    crop, share = int(stored["input_size"][-1]), stored.get("crop_pct") or 0.875
    mode, whose = stored.get("crop_mode") or "center", "timm's data configuration"
    if mode == "border":
        mode, share, whose = "squash", 1.0, f"{whose}, but stretched where it wants a border"
    resize = math.floor(crop / share)
    by = stored.get("interpolation") or "bicubic"
    return Preprocessing(
        crop,
        None if mode == "squash" and resize == crop else resize,
        by if by in INTERPOLATIONS else "bicubic",
        tuple(stored.get("mean") or MEAN),
        tuple(stored.get("std") or STD),
        mode == "squash",
        whose,
    )


def _normalisation(stored: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation for values of 0 to 1, whatever the processor scales to (ViViT's -1 to 1) before its own."""
    mean, std = tuple(stored.get("image_mean") or MEAN), tuple(stored.get("image_std") or STD)
    if not stored.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    scale = 255 * stored.get("rescale_factor", 1 / 255) if stored.get("do_rescale", True) else 255
    scale = 1 if math.isclose(scale, 1, rel_tol=1e-6) else scale
    offset = 1 if stored.get("offset") else 0
    return tuple((m + offset) / scale for m in mean), tuple(s / scale for s in std)


def _resized(stored: Mapping[str, Any]) -> int | None:
    """The length of the short side, or None where images are stretched."""
    size = stored.get("size")
    if isinstance(size, Mapping):
        return size.get("shortest_edge")
    return size if isinstance(size, int) and stored.get("default_to_square") is False else None


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size.get("height") or size.get("shortest_edge"))
