"""Pictures and clips decoded ahead of the model, in this process or in others; what is damaged is told, not fatal."""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from repshift_cli.evaluation.samples import Media, opened
from repshift_cli.models.inputs.preprocessing import Preprocessing
from repshift_cli.records import UsageError

CHUNK = 8
"""Items that a worker is handed at once."""


@dataclass(frozen=True)
class Damaged:
    """What could not be decoded, and why."""

    reason: str


@dataclass(frozen=True)
class Decode:
    """Makes an array of a picture (S, S, 3) or of `frames` frames of a clip (F, S, S, 3)."""

    preprocessing: Preprocessing
    frames: int | None = None

    def __call__(self, media: Media) -> np.ndarray | Damaged:
        """The pixels, or what is wrong with them."""
        from PIL import Image

        try:
            if self.frames is not None:
                return self._clip(media)
            with opened(media) as file, Image.open(file) as image:
                return self.preprocessing.pixels(image)
        except (OSError, ValueError, SyntaxError, UsageError, Image.DecompressionBombError, EOFError) as error:
            return Damaged(_reason(error))

    def _clip(self, media: Media) -> np.ndarray:
        from repshift_cli.models.inputs.clips import frames_of

        assert self.frames is not None
        source = media if isinstance(media, Path) else io.BytesIO(opened(media).read())
        return np.stack([self.preprocessing.pixels(image) for image in frames_of(source, self.frames)])


def _reason(error: Exception) -> str:
    """What is wrong, without the name of the object in memory that Pillow adds."""
    return " ".join(str(error).split(" <")[0].split())[:200] or type(error).__name__


def _several(decode: Decode, items: Sequence[Media]) -> list[np.ndarray | Damaged]:
    return [decode(item) for item in items]


class Decoder:
    """Decodes lists of items, each asked for ahead and taken later, in the order of its own; texts pass through."""

    def __init__(self, decode: Decode | None, workers: int) -> None:
        self._decode, self._pool = decode, None
        self._asked: dict[int, tuple[Sequence[Any], list[Future[list[Any]]]]] = {}
        if decode is not None and workers:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))

    def ask(self, number: int, items: Sequence[Any]) -> None:
        """Begin with these, to be taken under this number."""
        if number in self._asked:
            return
        futures: list[Future[list[Any]]] = []
        if self._pool and self._decode:
            pieces = (items[i : i + CHUNK] for i in range(0, len(items), CHUNK))
            futures = [self._pool.submit(_several, self._decode, piece) for piece in pieces]
        self._asked[number] = items, futures

    def take(self, number: int) -> list[Any]:
        """What was asked for, decoded, in its order."""
        items, futures = self._asked.pop(number)
        if self._decode is None:
            return list(items)
        if not self._pool:
            return _several(self._decode, items)
        return [value for future in futures for value in future.result()]

    def close(self) -> None:
        """End the workers; what nobody took is not decoded."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
