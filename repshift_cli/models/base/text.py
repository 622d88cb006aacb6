"""What the families of text encoders share: sentences in, the mean of the tokens that are left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.base.subjects import subject_of
from repshift_cli.models.base.transformers import Recipe, eager_attention, in_place, logits, pooled, weights_file
from repshift_cli.models.discovery.blocks import find_sites
from repshift_cli.models.inputs.images import batches, refuse_pixels
from repshift_cli.models.inputs.sentences import SPECIAL, Encoded, encoded, most_tokens, random_ids, roles
from repshift_cli.records import Case, Facts, Subject, UsageError


@dataclass(frozen=True)
class Encoder:
    """How to make one text encoder: `length` is the default number of tokens, `positions` the most it takes."""

    recipe: Recipe
    length: int
    positions: int
    window: int | None = None
    """Tokens on either side that sliding-window layers see; None where every layer sees all."""


class SentenceEncoder(nn.Module):
    """An encoder and the mean over its tokens: (B, N) ids and mask -> (B, C), not normalised (a cosine is the same)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = MeanOfTokens()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Ids (B, N) and, where there is padding, 1 for a token and 0 for padding (B, N) -> (B, C)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.pool(hidden, attention_mask)


class MeanOfTokens(nn.Module):
    """The mean over the tokens that the mask shows, as sentence-transformers takes it (arXiv 1908.10084)."""

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) and (B, N) -> (B, C)."""
        if attention_mask is None:
            return hidden.mean(1)
        shown = attention_mask.to(hidden.dtype).unsqueeze(-1)
        return (hidden * shown).sum(1) / shown.sum(1)


def family(encoder: Callable[[str], Encoder]) -> tuple[Callable[..., Facts], Callable[[Case], Subject]]:
    """The two functions every family file offers, `facts` and `build`, from a model's name to how it is made."""

    def facts(
        name: str,
        image_size: int | None = None,
        frames: int | None = None,
        weights: str | None = None,
        length: int | None = None,
        data: str | None = None,
    ) -> Facts:
        """Depth, tokens and the like, from the configuration; with `data` the length of its sentences."""
        refuse_pixels(name, image_size, frames)
        if weights is not None:
            weights_file(weights)
        return _facts(name, encoder(name), weights, length, data)

    def build(case: Case) -> Subject:
        """The encoder and its sentences on the case's device, in the case's dtype, with its blocks found."""
        made = encoder(case.model)
        module, warnings = in_place(made.recipe, case)
        evaluation, more = _inputs(made, case)
        return sentence_subject(SentenceEncoder(module).eval(), evaluation, (*warnings, *more))

    return facts, build


def sentence_subject(
    whole: SentenceEncoder, evaluation: tuple[dict[str, Tensor], ...], warnings: tuple[str, ...] = ()
) -> Subject:
    """The encoder with its blocks found, the ends of each sentence protected, and the mask cut for the mean too."""
    return subject_of(
        whole,
        evaluation,
        find_sites(whole, evaluation[0]),
        "seq",
        logits,
        pooled,
        marked=SPECIAL,
        warnings=warnings,
        roles=roles,
        readers=(whole.pool,),
        eager=partial(eager_attention, whole),
    )


def transformers_recipe(model: type, config: Any, checkpoint: str | None = None) -> Recipe:
    """A recipe without the library's own pooler, which reads the first token only and is not used here."""
    return Recipe(model, config, checkpoint, units="seq", unused=("pooler.",), prepare=_prepared)


def _prepared(module: Any) -> None:
    """No pooler; rotary frequencies made anew, for they are fp32 in every dtype and have been rounded like weights."""
    if hasattr(module, "pooler"):
        module.pooler = None
    if hasattr(module, "rotary_emb"):
        module.rotary_emb = type(module.rotary_emb)(module.config).to(module.device)


def _facts(name: str, made: Encoder, weights: str | None, length: int | None, data: str | None) -> Facts:
    config = made.recipe.config
    if length is not None and length > made.positions:
        raise UsageError(f"--tokens {length} is beyond the {made.positions} positions of {name}")
    if length is not None and length <= SPECIAL:
        raise UsageError(f"--tokens {length} leaves {name} none to drop: the first and the last always stay; use 3")
    found = None if data is None else _sentences(made, name, data, length)
    tokens = max(len(found.ids[0]), SPECIAL + 1) if found else length or min(made.length, made.positions)
    return Facts(
        depth=config.num_hidden_layers,
        tokens=tokens - SPECIAL,
        prefix=SPECIAL,
        row=False,
        head_dim=config.hidden_size // config.num_attention_heads,
        length=tokens,
        weights=weights or made.recipe.checkpoint or "random",
        mask=_needs_mask(made, tokens, found),
        eager=True,
    )


def _needs_mask(made: Encoder, length: int, found: Encoded | None) -> str | None:
    if found is not None and found.padded:
        return "sentences of different lengths, which are padded"
    return "sliding windows" if made.window is not None and length >= made.window else None


def _sentences(made: Encoder, name: str, data: str, length: int | None) -> Encoded:
    checkpoint = made.recipe.checkpoint
    if checkpoint is None:
        raise UsageError(f"--data needs a tokenizer, and {name} (random weights) has none; use --model hf:FOLDER")
    return encoded(checkpoint, data, length, most_tokens(checkpoint, made.positions))


def _inputs(made: Encoder, case: Case) -> tuple[tuple[dict[str, Tensor], ...], tuple[str, ...]]:
    """Batches of one shape, the first of which is timed, and what must be said of the sentences.

    Without padding there is no mask, so that attention may run on a kernel that takes none.
    """
    assert case.length is not None
    if case.input == "random":
        ids = random_ids(case.batch, case.length, made.recipe.config.vocab_size, case.seed)
        return ({"input_ids": ids.to(case.device)},), ()
    found = _sentences(made, case.model, case.input, case.length)
    rows = batches(torch.stack((found.ids, found.mask), dim=1).to(case.device), case.batch)
    parts = [{"input_ids": r[:, 0].contiguous(), "attention_mask": r[:, 1].contiguous()} for r in rows]
    if not found.padded:
        parts = [{"input_ids": part["input_ids"]} for part in parts]
    some = f"{found.cut} of {len(found.ids)} sentences have more than {found.most} tokens and were cut"
    return tuple(parts), (some,) if found.cut else ()
