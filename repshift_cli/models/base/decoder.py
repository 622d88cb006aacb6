"""What the decoder families share: the prefill of a prompt up to the logits of the next token, with its KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.base.subjects import RANDOM_WEIGHTS, subject_of
from repshift_cli.models.base.transformers import (
    TORCH_DTYPES,
    Recipe,
    eager_attention,
    first_line,
    from_checkpoint,
    restore_frequencies,
)
from repshift_cli.models.discovery.blocks import find_sites
from repshift_cli.models.inputs.images import batches, refuse_pixels
from repshift_cli.records import Case, Facts, Subject, UsageError

LENGTH = 512
"""The tokens of a prompt where nothing else is said."""


@dataclass(frozen=True)
class Decoder:
    """How to make one decoder: its configuration, and where its weights lie (None: random).

    `length` is the default number of tokens; `prefix` and `suffix` are text that is never dropped. The last token is
    always among them: its logits are what prefill is for.
    """

    config: Any
    length: int = LENGTH
    prefix: int = 0
    suffix: int = 1
    checkpoint: str | None = None


def family(recipe: Callable[[str], Decoder]) -> tuple[Callable[..., Facts], Callable[[Case], Subject]]:
    """The two functions every family file offers, `facts` and `build`, from a model's name to its recipe."""

    def facts(
        name: str,
        image_size: int | None = None,
        frames: int | None = None,
        weights: str | None = None,
        length: int | None = None,
    ) -> Facts:
        """Depth, tokens and the like, from the configuration alone."""
        refuse_pixels(name, image_size, frames)
        if weights is not None:
            raise UsageError(f"--weights does not apply to {name}; name a checkpoint with --model hf:FOLDER")
        return _facts(name, recipe(name), length)

    def build(case: Case) -> Subject:
        """The model and its prompts on the case's device, in the case's dtype, with its blocks found."""
        made = recipe(case.model)
        module, warnings = _module(made, case)
        prompts = [ids.to(case.device) for ids in _prompts(made, case)]
        evaluation = tuple({"input_ids": ids, "use_cache": True, "logits_to_keep": 1} for ids in prompts)
        found = find_sites(module, {**evaluation[0], "use_cache": False})
        more: dict[str, Any] = {"prefix": made.prefix, "suffix": made.suffix, "eager": partial(eager_attention, module)}
        return subject_of(module, evaluation, found, "prompt", next_logits, next_logits, warnings=warnings, **more)

    return facts, build


def next_logits(output: Any) -> Tensor:
    """(B, vocabulary): the logits of the token after the last."""
    return output.logits[:, -1]


def _facts(name: str, made: Decoder, length: int | None) -> Facts:
    config, protected = made.config, made.prefix + made.suffix
    length = length or min(made.length, config.max_position_embeddings)
    if length > config.max_position_embeddings:
        raise UsageError(f"{name} has positions for {config.max_position_embeddings} tokens, fewer than {length}")
    if length <= protected:
        raise UsageError(f"--tokens {length} leaves {name} none to drop: {protected} of its tokens are protected")
    return Facts(
        depth=config.num_hidden_layers,
        tokens=length - protected,
        prefix=protected,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        length=length,
        weights=made.checkpoint or "random",
        eager=True,
        causal=True,
    )


def _module(made: Decoder, case: Case) -> tuple[nn.Module, tuple[str, ...]]:
    """The model in its place, and what must be said of its weights."""
    from transformers import AutoModelForCausalLM

    dtype = TORCH_DTYPES[case.dtype]
    torch.manual_seed(case.seed)
    if made.checkpoint is not None:
        module, warnings = from_checkpoint(Recipe(AutoModelForCausalLM, made.config, made.checkpoint))
    else:
        with torch.device(case.device):
            module = AutoModelForCausalLM.from_config(made.config, dtype=dtype, trust_remote_code=False)
        warnings = (RANDOM_WEIGHTS,)
    module = module.eval().to(device=case.device, dtype=dtype)
    restore_frequencies(module)
    return module, warnings


def _prompts(made: Decoder, case: Case) -> list[Tensor]:
    """Token ids (B, N) of what is timed, first, and of all that fidelity is taken on: batches of the same shape."""
    assert case.length is not None
    if case.input == "random":
        generator = torch.Generator().manual_seed(case.seed)
        return [torch.randint(made.config.vocab_size, (case.batch, case.length), generator=generator)]
    if made.checkpoint is None:
        raise UsageError(
            f"--data does not apply to {case.model}: random weights have no tokenizer; use --model hf:NAME"
        )
    return batches(read_prompts(made.checkpoint, case.input, case.length), case.batch)


def read_prompts(checkpoint: str, place: str, length: int) -> Tensor:
    """The lines of a text file as token ids (M, length), by the checkpoint's tokenizer.

    Every prompt is cut to its first `length` tokens, so that no padding is needed; UsageError where one is shorter.
    """
    from transformers import AutoTokenizer

    try:
        lines = [line for line in Path(place).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the prompts {place}: one prompt per line of a text file is needed") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"cannot load the tokenizer of {checkpoint}: {first_line(error)}") from error
    if not lines:
        raise UsageError(f"{place} has no prompts: write one per line")
    rows = [tokenizer(line)["input_ids"] for line in lines]
    shortest = min(map(len, rows))
    if shortest < length:
        raise UsageError(f"the shortest prompt of {place} has {shortest} of {length} tokens: use --tokens {shortest}")
    return torch.tensor([row[:length] for row in rows])
