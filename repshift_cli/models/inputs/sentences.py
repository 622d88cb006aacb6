"""Inputs of text encoders: random token ids, or sentences read from a file, tokenised and padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repshift_cli.models.base.transformers import first_line
from repshift_cli.records import UsageError

SPECIAL = 2
"""[CLS] in front of a sentence and [SEP] behind it, whatever a tokenizer calls them."""
_LOW_IDS = 5
"""Padding and the like have the lowest ids; a random id is none of them, since some models count positions by it."""


@dataclass(frozen=True)
class Encoded:
    """M sentences in tokens: `ids` and `mask` (M, N), 1 in the mask for a token and 0 for padding; `cut` of the
    sentences had more tokens than `most` and lost their ends."""

    ids: Tensor
    mask: Tensor
    cut: int
    most: int

    @property
    def padded(self) -> bool:
        """Whether there is any padding."""
        return not bool(self.mask.all())


def random_ids(batch: int, length: int, vocabulary: int, seed: int) -> Tensor:
    """Token ids (B, N), the same for the same seed; the first and the last stand for [CLS] and [SEP]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(min(_LOW_IDS, vocabulary - 1), vocabulary, (batch, length), generator=generator)


def sentences(place: str) -> list[str]:
    """The lines of a text file, or of the .txt files of a folder sorted by name, without the empty ones."""
    path = Path(place)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    try:
        lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read sentences from {place}: write one per line of a text file in UTF-8") from error
    found = [line for line in lines if line]
    if not found:
        raise UsageError(f"no sentences in {place}: write one per line of a text file, or of .txt files in a folder")
    return found


@lru_cache(maxsize=4)
def encoded(checkpoint: str, place: str, length: int | None, most: int) -> Encoded:
    """The sentences of `place` by the checkpoint's own tokenizer, all padded to the longest of them.

    No sentence has more than `most` tokens; with `length` all are cut and padded to that. UsageError where the
    tokenizer is missing, or frames a sentence by something else than one token in front and one behind.
    """
    tokenizer = tokenizer_of(checkpoint)
    if tokenizer.num_special_tokens_to_add() != SPECIAL:
        raise UsageError(f"the tokenizer of {checkpoint} does not put one token in front of a sentence and one behind")
    texts = sentences(place)
    rows = tokenizer(texts, truncation=True, max_length=length or most)["input_ids"]
    longest = length or max(map(len, rows))
    whole = tokenizer(texts)["input_ids"]
    padded = tokenizer.pad({"input_ids": rows}, padding="max_length", max_length=longest, return_tensors="pt")
    cut = sum(len(all_of) > len(row) for all_of, row in zip(whole, rows, strict=True))
    return Encoded(padded["input_ids"], _checked(padded["attention_mask"]), cut, length or most)


def pieces(checkpoint: str, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as the text that it stands for, by the checkpoint's own tokenizer, spaces included."""
    tokenizer = tokenizer_of(checkpoint)
    return tuple(str(tokenizer.decode([number])) for number in ids)


def tokenizer_of(checkpoint: str) -> Any:
    """The checkpoint's own tokenizer; UsageError where it has none that can be loaded."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(f"cannot load the tokenizer of {checkpoint}: {first_line(error)}") from error


def most_tokens(checkpoint: str, positions: int) -> int:
    """How many tokens the checkpoint takes at once: its tokenizer's limit where that is smaller than `positions`."""
    return int(min(positions, tokenizer_of(checkpoint).model_max_length))


def _checked(mask: Tensor) -> Tensor:
    """The mask itself (M, N); UsageError where it hides every token of a row."""
    hidden = [number for number, row in enumerate(mask, start=1) if not row.any()]
    if hidden:
        raise UsageError(f"the attention mask hides every token of sentence {hidden[0]}; leave that sentence out")
    return mask


def roles(inputs: dict[str, Tensor]) -> Tensor:
    """`Subject.roles` (B, N): +inf for the first and the last token of each sentence, -inf for padding, else 0."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    real = torch.ones_like(ids) if mask is None else mask
    place = real.cumsum(1)
    ends = (place == 1) | (place == place[:, -1:])
    found = torch.zeros(ids.shape, device=ids.device).masked_fill(ends, float("inf"))
    return found.masked_fill(real == 0, float("-inf"))


def prompt_roles(inputs: dict[str, Any]) -> Tensor | None:
    """`Subject.roles` (B, N) of a decoder: -inf for padding, on whichever side, else 0; None without a mask of it."""
    mask, tokens = inputs.get("attention_mask"), inputs.get("input_ids", inputs.get("inputs_embeds"))
    if not isinstance(mask, Tensor) or not isinstance(tokens, Tensor) or mask.shape != tokens.shape[:2]:
        return None
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask == 0, float("-inf"))
