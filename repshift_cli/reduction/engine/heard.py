"""What a method hears of a block's attention, and the bias by which attention knows how many tokens each stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.sdpa import Answer, AttentionCall, Watcher
from repshift_cli.profiling.annotations import part
from repshift_cli.records import Case, Subject, UsageError
from repshift_cli.reduction import Method
from repshift_cli.reduction.engine.seen import Seen


class Hearing:
    """Watches the attention calls of a forward; between a block's hooks it knows in which one it is."""

    def __init__(self, method: Method, case: Case) -> None:
        self.sizes: Tensor | None = None
        self._method, self._case = method, case
        self._seen: Seen | None = None
        self._shape: tuple[int, int] | None = None
        self._instead: Watcher | None = None

    def begin(self, module: Any, args: Any) -> None:
        """Pre-hook of the whole model: no token stands for others yet."""
        self.sizes = None

    @property
    def needed(self) -> bool:
        """Whether any call must be looked at."""
        return self._method.hear is not None or self.proportional

    @property
    def proportional(self) -> bool:
        """Whether the sizes weigh in the scores."""
        return self._case.option("proportional") in ("on", "auto")

    def attended(self, call: AttentionCall, answer: Answer) -> Tensor:
        """Watcher of attention calls (see `kernels.sdpa`)."""
        if self._shape is None or (call.query.shape[0], call.query.shape[-2]) != self._shape:
            return answer(call)
        if call.is_causal and self._method.reduce is not None:
            raise UsageError(f"{self._case.pruning} changes the order of tokens, and {self._case.model} is causal")
        weighed = proportional(call, self.sizes) if self.proportional and self.sizes is not None else call
        if self._seen is not None and self._method.hear is not None:
            with part("score"):
                self._seen.heard = self._method.hear(weighed if self._method.HEARS_SIZES else call, self._case)
        return answer(weighed) if self._instead is None else self._instead(weighed, answer)

    def answers(self, hidden: Tensor, instead: Watcher | None, seen: Seen | None) -> None:
        """The block runs on `hidden` next; `instead` answers its call, and `seen` is told of it, where they are given.

        Until the block's end, or the next time.
        """
        self._shape, self._instead, self._seen = (hidden.shape[0], hidden.shape[1]), instead, seen

    def hooks(self, subject: Subject, layers: dict[int, Seen]) -> Iterator[Any]:
        """Hooks that tell in which block a forward is; what `layers` holds by block is told its calls."""
        first = min(layers)
        for number, site in enumerate(subject.sites, start=1):
            if number in layers or (self.proportional and number > first):
                yield from self._around(site.block, layers.get(number))

    def _around(self, block: Any, seen: Seen | None) -> Iterator[Any]:
        def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim == 3)
            self._shape, self._seen = (hidden.shape[0], hidden.shape[1]), seen
            if seen is not None:
                seen.heard = None

        def leave(*_: Any) -> None:
            self._shape = self._seen = self._instead = None

        yield block.register_forward_pre_hook(enter, with_kwargs=True)
        yield block.register_forward_hook(leave)


def proportional(call: AttentionCall, sizes: Tensor) -> AttentionCall:
    """The call with log(size) of every key added to its scores: softmax(q k^T / sqrt(d) + log s); sizes (B, N).

    (Bolya et al. 2023, arXiv 2210.09461, Eq. 1.)
    """
    bias = sizes.log().to(call.query.dtype)[:, None, None]
    mask = call.attn_mask
    if mask is not None and mask.dtype == torch.bool:
        bias = torch.where(mask, bias, -torch.inf)
    return call._replace(attn_mask=bias if mask is None or mask.dtype == torch.bool else mask + bias)


def check_heard(method: Method, seen: Seen, case: Case) -> None:
    """UsageError where the block made no call of torch's attention that could be heard."""
    if method.hear is not None and seen.heard is None:
        raise UsageError(
            f"{case.pruning} reads the queries and keys of a block's attention, and {case.model} shows none: its "
            "blocks do not call torch's scaled_dot_product_attention on their tokens; take a back end such as vanilla"
        )
