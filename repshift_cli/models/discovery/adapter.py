"""An adapter: where a model's blocks and branches are, by module paths, for a model in which they cannot be found."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.discovery.arguments import PLACES, companions
from repshift_cli.models.discovery.blocks import Found, NoSites, Trace, found, pattern, watch_first
from repshift_cli.records import UsageError

COUNTING = (
    "its blocks tell their tokens' places by themselves (positions or biases made inside, a convolution, a scan): "
    "behind a cut they go by the tokens that stay"
)


OUTPUTS = ("logits", "features")


@dataclass(frozen=True)
class Adapter:
    """Module paths: of the list of `blocks`, and within each of them (None: the block has no such part).

    `attention` (or what else mixes the tokens) and `mlp` put out what is added to the running state; `middle` reads the
    state between them, x'. `prefix` leading and `suffix` trailing tokens always stay; None: they are found. `output` is
    `logits` or `features` (None: it is found).
    """

    blocks: str
    attention: str | None = None
    middle: str | None = None
    mlp: str | None = None
    prefix: int | None = None
    suffix: int | None = None
    output: str | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], source: str) -> Adapter:
        """The adapter that `source` (a function's name, a file) gave; UsageError names what is wrong in it."""
        known = [f.name for f in fields(cls)]
        for key, value in given.items():
            if key not in known:
                raise UsageError(f"{source}: unknown key {key!r}; {_near(key, known)}")
            if key in ("prefix", "suffix"):
                good, what = type(value) is int and value >= 0, "a whole number of tokens"
            elif key == "output":
                good, what = value in OUTPUTS, " or ".join(OUTPUTS)
            else:
                good, what = isinstance(value, str), "a module's path, like 'encoder.layers'"
            if not good:
                raise UsageError(f"{source}: {key} must be {what}, not {value!r}")
        if "blocks" not in given:
            raise UsageError(f"{source}: an adapter names at least the blocks, like blocks = 'encoder.layers'")
        if "mlp" in given and "middle" not in given:
            raise UsageError(f"{source}: the shift of mlp needs middle too, the module of a block that reads x'")
        return cls(**given)

    @property
    def paths(self) -> tuple[str | None, str | None, str | None]:
        """Of attention, middle and MLP, within a block."""
        return self.attention, self.middle, self.mlp


def named_sites(module: nn.Module, inputs: Any, adapter: Adapter, prefix: int) -> Found:
    """The blocks and branches that an adapter names, checked by a forward through the first block and a few more of it.

    UsageError where a path leads nowhere or to a module that does not put out the block's (batch, tokens, channels);
    NoSites where the block takes no fewer tokens; a warning where what is named is not the very summand.
    """
    blocks = list(_at(module, adapter.blocks, "blocks").children())
    if not blocks:
        raise UsageError(f"blocks: {adapter.blocks} ({_class(module, adapter.blocks)}) has no modules inside it")
    for block in blocks:
        for name, path in zip(("attention", "middle", "mlp"), adapter.paths, strict=True):
            if path is not None:
                _at(block, path, name)
    trace = watch_first(module, blocks[0], inputs)
    if trace is None:
        raise UsageError(
            f"blocks: {pattern(module, blocks)} do not run on one tensor (batch, tokens, channels) to another"
        )
    if prefix >= trace.x.shape[1]:
        raise UsageError(f"prefix: {prefix} of {trace.x.shape[1]} tokens, so none can be dropped")
    inner = () if adapter.attention is None else (blocks[0].get_submodule(adapter.attention),)
    beside = companions(blocks[0], inner, trace.x, trace.tokens, trace.given, prefix)
    if beside.unfit not in (None, PLACES):
        reason = f"its blocks ({type(blocks[0]).__name__}) {beside.unfit}; none can be dropped"
        raise NoSites(f"{type(module).__name__}: {reason}", [(pattern(module, blocks), f"they {beside.unfit}")])
    at = found(blocks, adapter.paths, trace.x.shape[1], replace(beside, unfit=None))
    counting = (COUNTING,) if beside.unfit else ()
    return Found(**vars(at) | {"warnings": (*at.warnings, *counting, *_sums(trace, adapter))})


def _at(module: nn.Module, path: str, key: str) -> nn.Module:
    """The module at a path; UsageError names the part that is not there and the nearest that are."""
    for number, part in enumerate(path.split(".")):
        children = dict(module.named_children())
        if part not in children:
            before = ".".join(path.split(".")[:number]) or type(module).__name__
            raise UsageError(f"{key}: there is no {path}: {before} has no {part!r}; {_near(part, list(children))}")
        module = children[part]
    return module


def _near(name: str, known: list[str]) -> str:
    if not known:
        return "it has no modules inside it"
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    more = " ..." if len(known) > 8 else ""
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(known[:8])}{more}"


def _class(module: nn.Module, path: str) -> str:
    return type(module.get_submodule(path)).__name__


def _sums(trace: Trace, adapter: Adapter) -> tuple[str, ...]:
    """What does not add up as a block's equations say, in words; UsageError where the shapes do not fit."""
    given, put_out = {}, {}
    for name, path in zip(("attention", "middle", "mlp"), adapter.paths, strict=True):
        calls = [call for call in trace.calls if call[0] == path]
        if path is not None and len(calls) != 1:
            ran = f"runs {len(calls)} times on (batch, tokens, channels)" if calls else "does not run on them"
            raise UsageError(f"{name}: {path} {ran} in the first block; name the one module that does so once")
        for _, x, out in calls:
            given[name], put_out[name] = x, out
    for name, tensors in (("attention", put_out), ("mlp", put_out), ("middle", given)):
        if name in tensors and tensors[name].shape != trace.x.shape:
            shape = tuple(tensors[name].shape)
            raise UsageError(f"{name}: {getattr(adapter, name)} has {shape} where the block has {tuple(trace.x.shape)}")
    return tuple(_unsummed(trace, adapter, given, put_out))


def _unsummed(trace: Trace, adapter: Adapter, given: dict[str, Tensor], put_out: dict[str, Tensor]) -> list[str]:
    """Warnings for branches whose outputs are not what is added: to x, to x'."""
    states = [trace.out, *(x for _, x, _ in trace.calls)]
    warnings = []
    for name, before in (("attention", trace.x), ("mlp", given.get("middle"))):
        if name in put_out and before is not None and not _arises(before + put_out[name], states):
            state = "x" if name == "attention" else "x'"
            warnings.append(
                f"what {getattr(adapter, name)} puts out is not what the block adds to {state}: it is scored as it is, "
                "without the scale, or whatever else, that the block applies to it"
            )
    return warnings


def _arises(total: Tensor, states: list[Tensor | None]) -> bool:
    near = 16 * torch.finfo(total.dtype).eps * float(total.abs().max())
    return any(s is not None and s.shape == total.shape and float((s - total).abs().max()) <= near for s in states)
