"""Decoded samples as a model's inputs: pixels in the place of those that it was built with, texts as its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from repshift_cli.models.inputs.images import normalised
from repshift_cli.models.inputs.preprocessing import Preprocessing
from repshift_cli.models.inputs.sentences import tokenizer_of
from repshift_cli.records import Subject, UsageError


class Feed(Protocol):
    """How items become inputs."""

    def parts(self, item: Any) -> Sequence[Any]:
        """What of a decoded item goes through the model by itself: the item, or each frame of a clip."""

    def batches(self, items: Sequence[Any], size: int) -> list[list[int]]:
        """Which items go together, each batch filled up to `size` by repeating its own."""

    def inputs(self, items: Sequence[Any]) -> Any:
        """The model's inputs of one batch."""


def filled(places: Sequence[int], size: int) -> list[list[int]]:
    """Batches of exactly `size` in order, the last filled up from its own beginning."""
    batches = [list(places[i : i + size]) for i in range(0, len(places), size)]
    return [(batch * size)[:size] for batch in batches]


class Pixels:
    """Images (S, S, 3) or clips (F, S, S, 3) of 0 to 255, normalised, in the place of the subject's own."""

    def __init__(self, subject: Subject, preprocessing: Preprocessing) -> None:
        self._inputs, self._how = subject.inputs, preprocessing
        given = self._inputs.items() if isinstance(self._inputs, dict) else enumerate(self._inputs)
        found = [(n, v) for n, v in given if isinstance(v, Tensor) and v.is_floating_point() and v.ndim in (4, 5)]
        if not found:
            raise UsageError("the model takes neither images nor clips nor token ids: nothing can be evaluated on it")
        self._name, self._like = found[0]

    def parts(self, item: np.ndarray) -> Sequence[np.ndarray]:
        return list(item) if item.ndim == self._like.ndim else (item,)

    def batches(self, items: Sequence[Any], size: int) -> list[list[int]]:
        return filled(range(len(items)), size)

    def inputs(self, items: Sequence[np.ndarray]) -> Any:
        pixels = normalised(np.stack(items), self._how.mean, self._how.std).to(self._like.device, self._like.dtype)
        if isinstance(self._inputs, dict):
            return {**self._inputs, self._name: pixels}
        return tuple(pixels if place == self._name else value for place, value in enumerate(self._inputs))


class Texts:
    """Texts by the checkpoint's own tokenizer, cut to `most` tokens, padded to the longest of their batch."""

    def __init__(self, checkpoint: str, most: int, device: str) -> None:
        self._tokenizer, self._device = tokenizer_of(checkpoint), device
        self._most = min(most, int(self._tokenizer.model_max_length))

    def parts(self, item: str) -> Sequence[str]:
        return (item,)

    def batches(self, items: Sequence[Any], size: int) -> list[list[int]]:
        return filled(range(len(items)), size)

    def inputs(self, items: Sequence[str]) -> Any:
        found = self._tokenizer(list(items), truncation=True, max_length=self._most, padding=True, return_tensors="pt")
        return {name: found[name].to(self._device) for name in ("input_ids", "attention_mask")}


class Prompts:
    """Token ids of a decoder, whose batches hold prompts of one length each: nothing is padded."""

    def __init__(self, subject: Subject) -> None:
        self._inputs = subject.inputs

    def parts(self, item: Sequence[int]) -> Sequence[Sequence[int]]:
        return (item,)

    def batches(self, items: Sequence[Any], size: int) -> list[list[int]]:
        lengths: dict[int, list[int]] = {}
        for place, ids in enumerate(items):
            lengths.setdefault(len(ids), []).append(place)
        return [batch for places in lengths.values() for batch in filled(places, size)]

    def inputs(self, items: Sequence[Sequence[int]]) -> Any:
        return {**self._inputs, "input_ids": torch.tensor(items, device=self._inputs["input_ids"].device)}
