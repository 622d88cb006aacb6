"""Documents packed into one sequence, as models are trained on them: with a start token or not, masked apart or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.blocks import own_attention, visiting
from repshift_cli.inspection.base.rows import received
from repshift_cli.kernels.sdpa import AttentionCall

WHOLE, PACKED, APART = "whole", "packed", "packed, masked apart"
STARTED = ", start tokens"


@dataclass(frozen=True)
class Packing:
    """How a sequence is made: `packed` out of several documents, `apart` where none sees another, `started` where each
    begins with the model's start token (Barbero et al. 2025, arXiv 2504.02732, section 5)."""

    kind: str
    started: bool

    @property
    def name(self) -> str:
        """As it is written."""
        return self.kind + (STARTED if self.started else "")


PACKINGS = tuple(Packing(kind, started) for kind, started in product((WHOLE, PACKED, APART), (False, True)))


def unpackable(look: Look, documents: int) -> str | None:
    """Why no sequence of so many documents can be made, or None."""
    given = look.inputs[0]
    if not (isinstance(given, dict) and given.get("use_cache")):
        return "documents are packed for a causal language model, and this is none: leave out --packed"
    if len(look.inputs) < documents:
        return f"{documents} documents are packed of as many inputs: add --inputs {documents}"
    length = given["input_ids"].shape[1]
    return None if length >= 4 * documents else f"{length} tokens are too few for {documents} documents"


def start_of(look: Look) -> int | None:
    """The start token by the model's configuration, None where it has none."""
    start = getattr(getattr(look.subject.module, "config", None), "bos_token_id", None)
    return start if isinstance(start, int) else None


def sequences(look: Look, packing: Packing, documents: int) -> Iterator[list[Tensor]]:
    """For every input one sequence, as its documents' ids (1, n): all sequences are as long as an input.

    A packed document is the beginning of an input, that one and those behind it.
    """
    inputs = [given["input_ids"] for given in look.inputs]
    length = inputs[0].shape[1]
    count = 1 if packing.kind == WHOLE else documents
    for first in range(len(inputs)):
        some = [inputs[(first + n) % len(inputs)] for n in range(count)]
        yield [_begun(ids[:, : length // count], look, packing) for ids in some]


def _begun(ids: Tensor, look: Look, packing: Packing) -> Tensor:
    start = start_of(look)
    return torch.cat((ids.new_tensor([[start]]), ids[:, :-1]), 1) if packing.started and start is not None else ids


def attention_of(look: Look, pieces: list[Tensor], packing: Packing, least: int) -> list[Tensor]:
    """By block the attention (H, N) that every token of a sequence receives; to be called within `active()`.

    Documents that no other sees are run each by itself, which is the same for positions that count by distance.
    """
    runs = pieces if packing.kind == APART else [torch.cat(pieces, 1)]
    by_run = [_received(look, ids, least) for ids in runs]
    return [torch.cat(parts, 1) for parts in zip(*by_run, strict=True)]


def _received(look: Look, ids: Tensor, least: int) -> list[Tensor]:
    asking = torch.ones(ids.shape[1], dtype=torch.bool, device=ids.device)
    found: dict[int, Tensor] = {}

    def hear(layer: int, call: AttentionCall) -> None:
        if own_attention(call, len(asking)):
            found[layer] = received(call, asking, least=least)[0].cpu()

    with visiting(look.subject, hear=hear):
        look.run({**look.inputs[0], "input_ids": ids})
    return [found[layer] for layer in sorted(found)]
