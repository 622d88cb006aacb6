"""A reducing method at one block: it decides once all that it needs is seen, and the state goes on with fewer rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from repshift_cli.profiling.annotations import part
from repshift_cli.records import Case, Site, Subject, UsageError, left
from repshift_cli.reduction import Method
from repshift_cli.reduction.engine import between
from repshift_cli.reduction.engine.ahead import Ahead
from repshift_cli.reduction.engine.heard import Hearing, check_heard
from repshift_cli.reduction.engine.merging import Reduction
from repshift_cli.reduction.engine.seen import Seen, place_of
from repshift_cli.reduction.engine.selection import Share
from repshift_cli.reduction.engine.state import Dropped, tokens_of, with_tokens


class Reducer:
    """Reduces the state of one block, by what the method saw of it."""

    def __init__(
        self, subject: Subject, method: Method, case: Case, seen: Seen, share: Share, dropped: Dropped, hearing: Hearing
    ) -> None:
        self._subject, self._method, self._case, self._share = subject, method, case, share
        self._seen, self._dropped, self._hearing = seen, dropped, hearing

    def hooks(self, site: Site) -> Iterator[Any]:
        """Hooks that reduce x, x' or x^, in the method's place."""
        place = place_of(self._method, self._case)
        if place == "middle":
            return between.hooks(site, self._case.model, self.reduced)
        if place == "start":
            dropped = self._dropped if self._subject.companions else None
            return Ahead(site, self._seen, self._hearing, dropped, self.settled).hooks(self._case.model)
        return iter([site.block.register_forward_hook(self._at_end)])

    def _at_end(self, module: Any, args: Any, output: Any) -> Any:
        hidden = tokens_of(output)
        return with_tokens(output, hidden, self.reduced(hidden))

    def reduced(self, hidden: Tensor) -> Tensor:
        """(B, N, C) -> (B, k, C)."""
        return self.settled(hidden, lambda: None)[0]

    def settled(self, hidden: Tensor, ask: Callable[[], None]) -> tuple[Tensor, Reduction]:
        """The rows that are left, (B, k, C), and what was decided; `ask` has the method hear what it must, if any is to
        leave."""
        free = hidden.shape[1] - self._subject.protected
        if left(free, *self._share) == free:  # one token is left, or too few for the share
            places = torch.arange(hidden.shape[1], device=hidden.device)
            reduction = Reduction(places.expand(len(hidden), -1))
            self._dropped.add(reduction, hidden)
            return hidden, reduction
        ask()
        reduction = self._decided(hidden)
        self._dropped.add(reduction, hidden)
        with part("cut"):
            totals = None
            if reduction.merged is not None:
                totals = reduction.totals(torch.promote_types(hidden.dtype, torch.float32))
                self._hearing.sizes = totals if reduction.sizes is None else reduction.sizes
            return reduction.rows(hidden, totals), reduction

    def _decided(self, hidden: Tensor) -> Reduction:
        method, subject, seen = self._method, self._subject, self._seen
        assert method.reduce is not None
        check_heard(method, seen, self._case)
        seen.prefix, seen.suffix, seen.sizes = subject.prefix, subject.suffix, self._hearing.sizes
        seen.stay = left(hidden.shape[1] - subject.protected, *self._share)
        seen["rows"] = hidden
        with part("score"):
            reduction = method.reduce(seen, self._case)
        seen.clear()
        seen.heard = seen.sizes = None
        return reduction


def check_reducing(subject: Subject, method: Method, case: Case) -> None:
    """UsageError for a model whose tokens cannot be merged, or have none appended."""
    what = f"{case.pruning} cannot reduce the tokens of {case.model}"
    if subject.grid:
        raise UsageError(f"{what}: they are the grid of a CNN; choose a method that scores or chooses tokens")
    if subject.roles is not None or subject.central:
        raise UsageError(f"{what}: padding and marked tokens have places of their own in each sample")
    if method.APPENDS and (subject.companions or subject.biased):
        given = ", ".join(subject.companions) or "biases"
        raise UsageError(f"{what}: a token that it appends has no place, and the blocks are told places ({given})")
