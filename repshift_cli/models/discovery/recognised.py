"""A subject of a module that the caller built: its blocks are found, its protected tokens known by what it is.

What a family's `build` knows of its own models holds here for a module of the same kind: the ends of a sentence and its
padding, the last token of a prompt, the class token in the middle, the stages of a CNN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from repshift_cli.models import convnext, hf, resnet
from repshift_cli.models.base.subjects import subject_of
from repshift_cli.models.base.text import SentenceEncoder, sentence_subject
from repshift_cli.models.base.transformers import logits, pooled
from repshift_cli.models.base.vim import VisionMamba
from repshift_cli.models.discovery.adapter import Adapter, named_sites
from repshift_cli.models.discovery.blocks import Found, NoSites, find_sites, prefix_tokens
from repshift_cli.models.discovery.grids import find_stages
from repshift_cli.models.inputs.sentences import SPECIAL, prompt_roles, roles
from repshift_cli.records import Subject

STAGES = {"resnet": resnet.sites, "convnext": convnext.sites}
SCANS = ("mamba", "mamba2", "falcon_mamba")


def recognised(module: nn.Module, inputs: Any, adapter: Mapping[str, Any] | None = None) -> Subject:
    """The subject; an `adapter` (module paths) says where the blocks are. NoSites where none can be understood.

    `inputs` is a dict or a tuple of tensors, for one forward through the first block.
    """
    with _evaluating(module):
        if isinstance(module, SentenceEncoder):
            return sentence_subject(module, (_padded(inputs),))
        found, protected = _located(module, inputs, adapter)
    return subject_of(module, (inputs,), found, "sample", logits, pooled, warnings=found.warnings, **protected)


def _located(module: nn.Module, inputs: Any, adapter: Mapping[str, Any] | None) -> tuple[Found, dict[str, Any]]:
    """The blocks, and the fields of `Subject` that say what stays."""
    kind = getattr(getattr(module, "config", None), "model_type", None)
    if adapter is not None:
        return _adapted(module, inputs, Adapter.of(dict(adapter), type(module).__name__))
    if kind in STAGES:
        return Found(STAGES[kind](module), entering=1), {"grid": True}  # its tokens are not counted here
    if isinstance(module, VisionMamba):
        return find_sites(module, inputs, scanning=True), {"central": 1}
    if kind in SCANS:
        return find_sites(module, inputs, scanning=True), {"suffix": 1}
    if kind in hf.DECODERS:
        return find_sites(module, {**inputs, "use_cache": False} if isinstance(inputs, dict) else inputs), {
            "suffix": 1,
            "roles": prompt_roles,
        }
    if kind in hf.ENCODERS:
        return find_sites(module, _padded(inputs)), {"marked": SPECIAL, "roles": roles}
    timm = type(module).__module__.startswith("timm.")
    try:
        return find_sites(module, inputs, undivided=timm), {"prefix": prefix_tokens(module)}
    except NoSites:
        with suppress(NoSites):
            staged = find_stages(type(module).__name__, module, inputs)
            return Found(staged.sites(module), staged.facts.tokens), {"grid": True}
        raise


def _adapted(module: nn.Module, inputs: Any, adapter: Adapter) -> tuple[Found, dict[str, Any]]:
    prefix = prefix_tokens(module) if adapter.prefix is None else adapter.prefix
    return named_sites(module, inputs, adapter, prefix), {"prefix": prefix, "suffix": adapter.suffix}


def _padded(inputs: Any) -> Any:
    """The example with the end of its last sentence hidden: so the mask is seen that later sentences may need."""
    if not isinstance(inputs, dict) or "input_ids" not in inputs or "attention_mask" in inputs:
        return inputs
    mask = torch.ones_like(inputs["input_ids"])
    mask[-1, -1] = 0
    return {**inputs, "attention_mask": mask}


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Within it nothing drops out, for the sums of a block must hold bit for bit; afterwards it is as it was."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
