"""Mamba and Mamba-2 (arXiv 2312.00752, 2405.21060) of transformers: a prompt's tokens dropped, but for the last."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.kernels.scan import scan_named, selective_scan
from repshift_cli.models.base.subjects import RANDOM_WEIGHTS, subject_of
from repshift_cli.models.base.transformers import TORCH_DTYPES
from repshift_cli.models.discovery.blocks import find_sites
from repshift_cli.models.inputs.images import refuse_pixels
from repshift_cli.records import Case, Facts, Subject, UsageError

ALIASES = {
    "mamba_130m": {"width": 768, "depth": 24},
    "mamba_370m": {"width": 1024, "depth": 48},
    "mamba_790m": {"width": 1536, "depth": 48},
    "mamba2_130m": {"width": 768, "depth": 24, "heads": 24},
    "mamba2_370m": {"width": 1024, "depth": 48, "heads": 32},
    "mamba2_780m": {"width": 1536, "depth": 48, "heads": 48},
}
LENGTH = 512
"""The tokens of a prompt where nothing else is said."""
SCAN = "mamba_selective_scan"
"""What transformers' Mamba calls its scan by; without mamba-ssm it is a Python loop over the tokens."""


@lru_cache(maxsize=64)
def facts(
    name: str,
    image_size: int | None = None,
    frames: int | None = None,
    weights: str | None = None,
    length: int | None = None,
) -> Facts:
    """Depth, tokens and the like of a model, from its sizes; the last token is the protected one."""
    refuse_pixels(name, image_size, frames)
    if weights is not None:
        raise UsageError(f"--weights does not apply to {name}: it is built with random weights only")
    length = length or LENGTH
    if length < 2:
        raise UsageError(f"--tokens {length} leaves {name} none to drop: its last token always stays; give 2 or more")
    return Facts(
        depth=ALIASES[name]["depth"],
        tokens=length - 1,
        prefix=1,
        length=length,
        operations=("attention", "block"),
        attention=False,
    )


def build(case: Case) -> Subject:
    """The model and its prompts on the case's device, in the case's dtype, with its blocks found."""
    from transformers.utils import logging

    if case.input != "random":
        raise UsageError(f"--data does not apply to {case.model}: random weights have no tokenizer")
    logging.set_verbosity_error()  # it warns of its own slow scan; the record says which one runs
    torch.manual_seed(case.seed)
    with torch.device(case.device):
        module = _made(case.model)
    module = module.eval().to(device=case.device, dtype=TORCH_DTYPES[case.dtype])
    inputs = {"input_ids": _prompts(module, case), "use_cache": False, "logits_to_keep": 1}
    context, scan = _scan_of(module)
    with context():
        found = find_sites(module, inputs, scanning=True)
    warnings = (RANDOM_WEIGHTS, scan)
    return subject_of(
        module, (inputs,), found, "prompt", next_logits, next_logits, suffix=1, warnings=warnings, context=context
    )


def next_logits(output: Any) -> Tensor:
    """(B, vocabulary): the logits of the token after the last."""
    return output.logits[:, -1]


def _made(name: str) -> nn.Module:
    import transformers

    size = ALIASES[name]
    sizes = {"hidden_size": size["width"], "num_hidden_layers": size["depth"], "tie_word_embeddings": True}
    if "heads" not in size:
        return transformers.MambaForCausalLM(transformers.MambaConfig(**sizes, vocab_size=50280))
    more = {"num_heads": size["heads"], "n_groups": 1, "vocab_size": 50288}
    return transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes, **more))


def _prompts(module: Any, case: Case) -> Tensor:
    """Token ids (B, N)."""
    generator = torch.Generator().manual_seed(case.seed)
    shape = (case.batch, case.length or LENGTH)
    return torch.randint(module.config.vocab_size, shape, generator=generator).to(case.device)


# --- the scan ---------------------------------------------------------------------------------------------------------


def _scan_of(module: nn.Module) -> tuple[Callable[[], AbstractContextManager[None]], str]:
    """What the model runs within, and a sentence for the record: which scan it runs."""
    from transformers.models.mamba import modeling_mamba

    if not isinstance(module, modeling_mamba.MambaForCausalLM):
        return nullcontext, "scan: transformers' own (chunks of tokens in plain torch, or mamba-ssm where installed)"
    if SCAN not in inspect.unwrap(modeling_mamba.MambaMixer.forward).__code__.co_names:
        return nullcontext, "scan: transformers' own (a Python loop over tokens, or mamba-ssm where installed)"
    return own_scan, f"{scan_named(next(module.parameters()))}, in the place of transformers' loop over tokens"


@contextmanager
def own_scan() -> Iterator[None]:
    """Within it transformers' Mamba scans by `kernels.scan`; afterwards it is as it was."""
    from transformers.models.mamba import modeling_mamba

    theirs = getattr(modeling_mamba, SCAN)
    setattr(modeling_mamba, SCAN, _scan)
    try:
        yield
    finally:
        setattr(modeling_mamba, SCAN, theirs)


def _scan(
    hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, return_last_state: bool = False, **given: Any
) -> Tensor:
    """`kernels.scan.selective_scan` under the names that transformers calls it by."""
    if return_last_state:
        raise UsageError("this scan keeps no state for decoding: run the model with use_cache=False")
    options = {name: given.get(name) for name in ("D", "z", "delta_bias")}
    softplus = bool(given.get("delta_softplus", False))
    return selective_scan(hidden_states, dt, A, B, C, **options, delta_softplus=softplus)
