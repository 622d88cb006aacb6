"""How a checkpoint wants its images: resized, cropped and normalised as its image processor or timm's data say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

INTERPOLATIONS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers of them, which image processors store."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """`crop` pixels of a side out of the middle, after the short side was made `resize` long.

    Without `resize` the whole image is made `crop` x `crop`, whatever its shape. Values of 0 to 1 less `mean`, over
    `std`.
    """

    crop: int
    resize: int | None = None
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def at(self, size: int) -> Preprocessing:
        """The same for images of another size, the margin around the crop in proportion."""
        resize = None if self.resize is None else round(self.resize * size / self.crop)
        return dataclasses.replace(self, crop=size, resize=resize)

    @property
    def words(self) -> str:
        """What is done, in one line."""
        first = "stretched" if self.resize is None else f"short side {self.resize}, centre crop"
        numbers = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{first} {self.crop} px, {self.interpolation}, mean {{}}, std {{}}".format(*numbers)

    def pixels(self, image: Image) -> np.ndarray:
        """(crop, crop, 3) of 0 to 255."""
        image, by = image.convert("RGB"), INTERPOLATIONS[self.interpolation]
        if self.resize is None:
            return np.asarray(image.resize((self.crop, self.crop), by), dtype=np.uint8)
        width, height = image.size
        short = min(width, height)
        width, height = int(self.resize * width / short), int(self.resize * height / short)
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
    normalised = stored.get("do_normalize", True)
    numbers = {int(number): name for name, number in INTERPOLATIONS.items()}
    return Preprocessing(
        crop,
        resize,
        numbers.get(stored.get("resample", 2), "bilinear"),
        tuple(stored.get("image_mean") or MEAN) if normalised else (0.0,) * 3,
        tuple(stored.get("image_std") or STD) if normalised else (1.0,) * 3,
    )


def _resized(stored: Mapping[str, Any]) -> int | None:
    """The length of the short side, or None where images are stretched."""
    size = stored.get("size")
    if isinstance(size, Mapping):
        return size.get("shortest_edge")
    return size if isinstance(size, int) and stored.get("default_to_square") is False else None


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size.get("height") or size.get("shortest_edge"))
