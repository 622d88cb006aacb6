"""The one place where torch's `scaled_dot_product_attention` is patched: whoever answers, changes or hears a call.

Transformers, timm and plain modules all call `torch.nn.functional.scaled_dot_product_attention` by that path, so one
patch is seen by every family and every back end; q, k and v are (B, H, N, d) there, whatever packing a model projects
them in. Three ways in, each a context manager, in any number and nested in any order:

- `answered_by(attend)`: a back end. It stands at the bottom; the one entered last answers.
- `watched_by(watcher)`: stands around all that was entered before it. It is given the call and how to have it answered,
  and may change either: attention that adds a bias asks for `answer(call._replace(attn_mask=...))`. `watched_in(module,
  watcher)` stands around the calls of one module.
- `heard_by(listener)`: is told each call and changes nothing; `heard_in(module, listener)` only those of one module.

While nothing is entered, and after the last has left (by an exception too), torch's function is the untouched one; a
back end alone stands there itself, with nothing around it, so that what is timed is the back end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class AttentionCall(NamedTuple):
    """What a model asks of attention: query (B, H, Nq, d), key (B, Hkv, Nk, d), value (B, Hkv, Nk, dv), and the rest.

    `attn_mask` is boolean (True: seen) or added to the scores, of a shape that broadcasts to (B, H, Nq, Nk). Of
    `scale` None is 1 / sqrt(d); Hkv may be smaller than H with `enable_gqa` only.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False


Attend = Callable[..., Tensor]
"""A function with the signature of torch's `scaled_dot_product_attention`: (B, H, Nq, dv)."""
Answer = Callable[[AttentionCall], Tensor]
Watcher = Callable[[AttentionCall, Answer], Tensor]
Listener = Callable[[AttentionCall], Any]

_attends: list[Attend] = []
_watchers: list[Watcher] = []


@contextmanager
def answered_by(attend: Attend) -> Iterator[None]:
    """Within it `attend` answers every call."""
    with _entered(_attends, attend):
        yield


@contextmanager
def watched_by(watcher: Watcher, answered: bool = False) -> Iterator[None]:
    """Within it every call goes to `watcher(call, answer)`, whose result the model gets.

    `answered` ones alone: those that all other watchers have the back end answer, as they ask it.
    """
    with _entered(_watchers, watcher, first=answered):
        yield


@contextmanager
def heard_by(listener: Listener, answered: bool = False) -> Iterator[None]:
    """Within it `listener(call)` is told every call before it is answered, or only those as in `watched_by`."""

    def watcher(call: AttentionCall, answer: Answer) -> Tensor:
        listener(call)
        return answer(call)

    with watched_by(watcher, answered):
        yield


@contextmanager
def heard_in(module: nn.Module, listener: Listener) -> Iterator[None]:
    """Within it `listener(call)` is told the calls that are made inside `module`'s forward: a block's q, k and v."""

    def watcher(call: AttentionCall, answer: Answer) -> Tensor:
        listener(call)
        return answer(call)

    with watched_in(module, watcher):
        yield


@contextmanager
def watched_in(module: nn.Module, watcher: Watcher) -> Iterator[None]:
    """Within it the calls that are made inside `module`'s forward go to `watcher(call, answer)`."""
    inside: list[None] = []

    def enter(*_: Any) -> None:
        inside[:] = [None]

    def leave(*_: Any) -> None:
        inside.clear()

    def watched(call: AttentionCall, answer: Answer) -> Tensor:
        return watcher(call, answer) if inside else answer(call)

    # not with always_call: torch.compile guards the ids of such hooks, and would compile anew for each entry
    handles = module.register_forward_pre_hook(enter), module.register_forward_hook(leave)
    try:
        with watched_by(watched):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _entered(layers: list[Any], layer: Any, first: bool = False) -> Iterator[None]:
    global _torchs
    if not (_attends or _watchers):
        _torchs = F.scaled_dot_product_attention
    layers.insert(0 if first else len(layers), layer)
    _patch()
    try:
        yield
    finally:
        del layers[_last(layers, layer)]
        _patch()


_torchs: Attend = F.scaled_dot_product_attention
"""What stood there before anything was entered."""


def _patch() -> None:
    F.scaled_dot_product_attention = reduce(_around, _watchers, _attends[-1] if _attends else _torchs)


def _last(layers: list[Any], layer: Any) -> int:
    """Contexts may leave in another order than the reverse (an ExitStack's, a generator's that is closed late)."""
    return next(i for i in reversed(range(len(layers))) if layers[i] is layer)


def _around(attend: Attend, watcher: Watcher) -> Attend:
    def answer(call: AttentionCall) -> Tensor:
        return attend(call.query, call.key, call.value, **_told(call))

    def scaled_dot_product_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return watcher(AttentionCall(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa), answer)

    return scaled_dot_product_attention


def _told(call: AttentionCall) -> dict[str, Any]:
    """The options that say anything: a back end need not know `enable_gqa` for a model that never asks for it."""
    options: dict[str, Any] = {} if call.attn_mask is None else {"attn_mask": call.attn_mask}
    if call.dropout_p:
        options["dropout_p"] = call.dropout_p
    if call.is_causal:
        options["is_causal"] = call.is_causal
    if call.scale is not None:
        options["scale"] = call.scale
    if call.enable_gqa:
        options["enable_gqa"] = call.enable_gqa
    return options
