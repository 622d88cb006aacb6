"""Blocks seen from within: their states and branches, and their attention calls, handed over block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.sdpa import AttentionCall, heard_in
from repshift_cli.records import Site, Subject
from repshift_cli.reduction.engine.seen import Seen
from repshift_cli.reduction.engine.state import tokens_of

Visit = Callable[[int, Seen], None]
"""Given a block's number, from 1, and what was seen of it, each (B, N, C): the names of `engine.seen`."""
Hear = Callable[[int, AttentionCall], None]
"""Given a block's number, from 1, and a call of attention within it."""


@contextmanager
def visiting(subject: Subject, visit: Visit | None = None, hear: Hear | None = None) -> Iterator[None]:
    """Within it `visit` sees every block as it ends, `hear` each of its attention calls; both drop what they need not.

    Of one block's tensors no more is kept than `visit` keeps.
    """
    with ExitStack() as stack:
        for layer, site in enumerate(subject.sites, start=1):
            if hear is not None:
                stack.enter_context(heard_in(site.block, partial(hear, layer)))
            if visit is not None:
                for handle in _hooked(layer, site, visit):
                    stack.callback(handle.remove)
        yield


def _hooked(layer: int, site: Site, visit: Visit) -> Iterator[Any]:
    seen = Seen()

    def entering(name: str) -> Any:
        def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[name] = tokens_of((*args, *kwargs.values()))

        return see

    def leaving(name: str) -> Any:
        def see(module: Any, args: Any, output: Any) -> None:
            seen[name] = tokens_of(output)

        return see

    def end(module: Any, args: Any, output: Any) -> None:
        seen["resid_post"] = tokens_of(output)
        visit(layer, Seen(seen))
        seen.clear()

    yield site.block.register_forward_pre_hook(entering("resid_pre"), with_kwargs=True)
    if site.middle is not None:
        yield site.middle.register_forward_pre_hook(entering("resid_mid"), with_kwargs=True)
    if site.attention is not None:
        yield site.attention.register_forward_hook(leaving("attn_out"))
    if site.mlp is not None:
        yield site.mlp.register_forward_hook(leaving("mlp_out"))
    yield site.block.register_forward_hook(end)


def entering(subject: Subject) -> int:
    """How many tokens of a sample enter the first block."""
    return subject.tokens + subject.protected


def own_places(subject: Subject, inputs: Any) -> Tensor:
    """The places (n,) of the tokens of one sample that may go, among those that enter a block."""
    length = entering(subject)
    if subject.roles is not None:
        return (_roles(subject, inputs) == 0).nonzero().squeeze(1)
    places = torch.arange(subject.prefix, length - subject.suffix)
    if subject.central:
        places = places[places != subject.prefix + (length - subject.protected) // 2]
    return places


def real_places(subject: Subject, inputs: Any) -> Tensor:
    """Which tokens of one sample are no padding: (N,)."""
    if subject.roles is None:
        return torch.ones(entering(subject), dtype=torch.bool)
    return places_of_real(subject, inputs)[0].cpu()


def places_of_real(subject: Subject, inputs: Any) -> Tensor:
    """Which tokens of a batch are no padding, of a model whose inputs say so: (B, N)."""
    return _roles_of_all(subject, inputs) > float("-inf")


def _roles(subject: Subject, inputs: Any) -> Tensor:
    return _roles_of_all(subject, inputs)[0].cpu()


def _roles_of_all(subject: Subject, inputs: Any) -> Tensor:
    assert subject.roles is not None
    named = inputs if isinstance(inputs, dict) else signature(subject.module.forward).bind_partial(*inputs).arguments
    roles: Tensor = subject.roles(named)
    return roles


def own_attention(call: AttentionCall, length: int) -> bool:
    """Whether a call is one sample's attention of all tokens to all: no windows, no attention across frames."""
    return call.query.shape[0] == 1 and call.query.shape[2] == call.key.shape[2] == length
