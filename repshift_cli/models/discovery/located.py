"""All that must be known of a model that nobody wrote a family for: its blocks, the tokens that stay, its attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from repshift_cli.kernels.sdpa import heard_by
from repshift_cli.models.discovery.adapter import Adapter, named_sites
from repshift_cli.models.discovery.blocks import CAUSAL, Found, NoSites, find_sites, prefix_tokens
from repshift_cli.models.discovery.learnt import Learnt, learnt_tokens
from repshift_cli.records import UsageError

NOT_TORCHS = (
    "the blocks compute their attention themselves, not by torch's scaled_dot_product_attention, so no back end can "
    "stand in for it: the variants are none and none+METHOD (--variant none,none+repshift)"
)
SEQUENCE_FIRST = (
    "its nn.MultiheadAttention takes tokens first (N, B, C), and the tokens that go differ from sample to sample; "
    "build it with batch_first=True and give it (B, N, C)"
)


@dataclass(frozen=True)
class Located:
    """Blocks, leading and trailing tokens that stay, whether attention is torch's, and what must be said."""

    found: Found
    prefix: int
    suffix: int
    attention: bool
    head_dim: int | None
    warnings: tuple[str, ...]

    @property
    def free(self) -> int:
        """The tokens that may go."""
        return self.found.entering - self.prefix - self.suffix


def located(module: nn.Module, inputs: Any, adapter: Adapter | None) -> Located:
    """What forwards through the first block show; UsageError or NoSites where tokens cannot be dropped."""
    head_dims: list[int] = []
    try:
        with heard_by(lambda call: head_dims.append(call.query.shape[-1])):
            found = _found(module, inputs, adapter)
    except NoSites as error:
        if _sequence_first(module):
            raise NoSites(f"{type(module).__name__}: {SEQUENCE_FIRST}", error.looked) from error
        raise
    learnt = learnt_tokens(module, found.sites[0].block, inputs)
    prefix, suffix = _protected(module, found, learnt, adapter)
    if prefix + suffix >= found.entering or found.entering < 2:
        hint = f" ({SEQUENCE_FIRST})" if _sequence_first(module) else ""
        raise UsageError(f"{prefix + suffix} of {found.entering} tokens are protected, so none can be dropped{hint}")
    said = tuple(_said(learnt, prefix, suffix, prefix_tokens(module)))
    warnings = (*found.warnings, *said, *(() if head_dims else (NOT_TORCHS,)))
    return Located(found, prefix, suffix, bool(head_dims), head_dims[0] if head_dims else None, warnings)


def _found(module: nn.Module, inputs: Any, adapter: Adapter | None) -> Found:
    if adapter is None:
        return find_sites(module, inputs)
    prefix = prefix_tokens(module) if adapter.prefix is None else adapter.prefix
    return named_sites(module, inputs, adapter, prefix)


def _protected(module: nn.Module, found: Found, learnt: Learnt, adapter: Adapter | None) -> tuple[int, int]:
    """What the adapter says; else the tokens that a name or the trial tells, and the last one of causal blocks."""
    prefix = max(prefix_tokens(module), learnt.leading)
    suffix = max(learnt.trailing, int(CAUSAL in found.warnings))
    if adapter is not None:
        prefix = prefix if adapter.prefix is None else adapter.prefix
        suffix = suffix if adapter.suffix is None else adapter.suffix
    return prefix, suffix


def _said(learnt: Learnt, prefix: int, suffix: int, named: int) -> Iterator[str]:
    """What must be said of tokens that do not come from the input."""
    if named < learnt.leading <= prefix:
        yield _kept(learnt.leading, "leading", learnt.called, "prefix")
    if learnt.leading > prefix:
        yield _goes(f"of the {learnt.leading} leading tokens", learnt.called, prefix, "prefix")
    if 0 < learnt.trailing <= suffix:
        yield _kept(learnt.trailing, "trailing", learnt.called, "suffix")
    if learnt.trailing > suffix:
        yield _goes(f"of the {learnt.trailing} trailing tokens", learnt.called, suffix, "suffix")
    if learnt.inside:
        places = ", ".join(str(place + 1) for place in learnt.inside[:4]) + (" ..." if len(learnt.inside) > 4 else "")
        yield (
            f"tokens in the middle do not come from the input{learnt.called} and may be dropped, at {places}: put them "
            "in front, where `prefix` protects them"
        )


def _kept(count: int, where: str, called: str, key: str) -> str:
    tokens, do, are = ("token", "does", "is") if count == 1 else ("tokens", "do", "are")
    made = f"{count} {where} {tokens} {do} not come from the input{called} and {are} protected"
    return f"{made}; an adapter's `{key}` says otherwise"


def _goes(which: str, called: str, count: int, key: str) -> str:
    return (
        f"{which} that do not come from the input{called}, {key} = {count} protects {count}; the others may be dropped"
    )


def _sequence_first(module: nn.Module) -> bool:
    return any(isinstance(m, nn.MultiheadAttention) and not m.batch_first for m in module.modules())
