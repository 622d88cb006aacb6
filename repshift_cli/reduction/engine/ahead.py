"""Reducing tokens before a block, by its own queries and keys: the block is asked for them, then runs on what is left.

To be asked, it runs as far as attention's call, which is answered with nothing; its MLP is given one token. So asking
costs the norm, the projections of q, k and v and that of the output, once more. (A forward written for one model can
leave out those of v and of the output.) What it puts out then is thrown away.

Where the reduction says so (`asks`), attention is that of the first call, merged: with A the map of all N rows, v' the
values of the k rows left, e(j) the row in which row j ended and w the weights,

    out_i = sum_{n in i} w_n sum_j A_nj v'_e(j) / sum_{n in i} w_n

which is any back end's answer to q and k of N rows and v' spread over them, merged as the state is: no map is kept, and
the cost is that of attention on N rows and two copies of BHNd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.cut import gather
from repshift_cli.kernels.sdpa import Answer, AttentionCall
from repshift_cli.profiling.annotations import listening, part
from repshift_cli.records import Site, UsageError
from repshift_cli.reduction.engine.fused_add import awaiting_sum
from repshift_cli.reduction.engine.heard import Hearing
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen
from repshift_cli.reduction.engine.state import Dropped, tokens_of, with_tokens

Settle = Callable[[Tensor, Callable[[], None]], tuple[Tensor, Reduction]]
"""(B, N, C) and how the block is asked -> (B, k, C) and the reduction, once in each forward."""


class Ahead:
    """Reduces the tokens of one block before it runs. `dropped` cuts its arguments, where it has any of tokens."""

    def __init__(self, site: Site, seen: Seen, hearing: Hearing, dropped: Dropped | None, settle: Settle) -> None:
        self._site, self._seen, self._hearing = site, seen, hearing
        self._dropped, self._settle = dropped, settle
        self._asking: list[bool] = []
        self._calls: list[AttentionCall] = []

    def hooks(self, model: str) -> Iterator[Any]:
        """Its hooks; UsageError for a block whose branches cannot be told apart."""
        site = self._site
        if site.attention is None or site.mlp is None or site.middle is None or site.parallel:
            raise UsageError(f"the method asks each block's attention first, and those of {model} have none apart")
        yield site.attention.register_forward_hook(self._at_attention)
        yield site.middle.register_forward_pre_hook(self._at_middle, with_kwargs=True)
        yield site.block.register_forward_pre_hook(self._at_start, with_kwargs=True)

    def _at_start(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = tokens_of((*args, *kwargs.values()))
        first = self._cut(module, args, kwargs)
        self._asking.clear()  # of a forward that failed
        self._calls.clear()

        def ask() -> None:
            self._hearing.answers(hidden, self._unanswered, self._seen)
            with part("score"), listening(None):
                self._asking.append(True)
                module.forward(*first[0], **first[1])
                self._asking.clear()

        fewer, reduction = self._settle(hidden, ask)
        self._hearing.answers(fewer, self._by_merging(reduction) if reduction.asks else None, None)
        args = tuple(fewer if v is hidden else v for v in args)
        return self._cut(module, args, {name: fewer if v is hidden else v for name, v in kwargs.items()})

    def _cut(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments without what belongs to tokens that are gone."""
        return (self._dropped and self._dropped.rest(module, args, kwargs)) or (args, kwargs)

    def _unanswered(self, call: AttentionCall, answer: Answer) -> Tensor:
        self._calls.append(call)
        return call.value.new_zeros(()).expand(*call.query.shape[:-1], call.value.shape[-1])

    def _by_merging(self, reduction: Reduction) -> Callable[[AttentionCall, Answer], Tensor]:
        """What answers the block's call by the map of the one before."""
        if len(self._calls) != 1:
            raise UsageError(
                f"a map cannot be reused where a block calls attention {len(self._calls)} times; use --ahead off"
            )
        asked = self._calls.pop()

        def merged(call: AttentionCall, answer: Answer) -> Tensor:
            ends = reduction.ends(asked.query.shape[-2], call.query.device)
            out = answer(asked._replace(value=_by_heads(gather(_by_rows(call.value), 0, ends), call.value.shape[1])))
            totals = reduction.totals(torch.promote_types(out.dtype, torch.float32))
            return _by_heads(reduction.rows(_by_rows(out), totals), out.shape[1])

        return merged

    def _at_attention(self, module: Any, args: Any, output: Any) -> Any:
        branch = tokens_of(output)
        if not self._asking or torch.compiler.is_compiling() or type(branch) is not Tensor:
            return None
        return with_tokens(output, branch, awaiting_sum(branch, lambda state, branch: state[:, :1]))

    def _at_middle(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._asking:
            return None
        hidden = tokens_of((*args, *kwargs.values()))
        one = hidden[:, :1]
        return tuple(one if v is hidden else v for v in args), {n: one if v is hidden else v for n, v in kwargs.items()}


def _by_rows(heads: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H d)."""
    return heads.transpose(1, 2).flatten(2)


def _by_heads(rows: Tensor, heads: int) -> Tensor:
    """(B, N, H d) -> (B, H, N, d)."""
    return rows.unflatten(2, (heads, -1)).transpose(1, 2)
