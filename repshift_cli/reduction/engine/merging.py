"""What a reducing method decides at a block, and the rows that come of it: kept, merged into others, appended."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from repshift_cli.kernels.cut import gather


class Reduction(NamedTuple):
    """Of B x N rows: `stay` go on in this order, `merged` are added into rows of `stay`, `fused` become one row more.

    A row that stays becomes the mean of itself and what is merged into it, by `weights` (None: 1 each); the sums of
    these are the new token sizes unless `sizes` says otherwise. Dropping is the case in which nothing is merged.

    Costs for s rows that stay and m merged of C elements of e bytes: `rows` takes 3 launches and (4 s + 5 m) BCe bytes,
    and 2 and 2 (s + m) BCe more where there are weights.
    """

    stay: Tensor
    """Places (B, s)."""
    merged: Tensor | None = None
    """Places (B, m)."""
    into: Tensor | None = None
    """Which of the rows that stay, counted in `stay`: (B, m)."""
    weights: tuple[Tensor, Tensor] | None = None
    """Of those that stay (B, s) and of those merged (B, m)."""
    sizes: Tensor | None = None
    """The new sizes (B, s), where they are not the sums of the weights."""
    fused: Tensor | None = None
    """Places (B, f) of the rows whose sum by `shares` (B, f) is appended last."""
    shares: Tensor | None = None
    asks: bool = False
    """Before a block: attention is by the map of all rows that it was asked for, merged as they are, and not by a map
    of the rows that are left."""

    def totals(self, dtype: torch.dtype) -> Tensor:
        """The sum of the weights in every row that stays: (B, s)."""
        if self.weights is None:
            total = torch.ones_like(self.stay, dtype=dtype)
            more = torch.ones_like(self.stay[:, :1], dtype=dtype)
        else:
            total, more = (w.to(dtype) for w in self.weights)
        if self.merged is None or self.into is None:
            return total
        return total.scatter_add(1, self.into, more.expand_as(self.into))

    def rows(self, hidden: Tensor, totals: Tensor | None) -> Tensor:
        """The rows that come of (B, N, C): (B, k, C). `totals` are those of `totals`, None where none are merged."""
        kept = gather(hidden, 0, self.stay)
        if self.merged is not None and self.into is not None and totals is not None:
            kept = self._added(kept, gather(hidden, 0, self.merged)) / totals.unsqueeze(-1).to(hidden.dtype)
        if self.fused is None or self.shares is None:
            return kept
        more = self.shares.unsqueeze(1).to(hidden.dtype) @ gather(hidden, 0, self.fused)
        return torch.cat((kept, more), 1)

    def _added(self, kept: Tensor, merged: Tensor) -> Tensor:
        """The sums, by one index_add over the flattened batch: no index is expanded over C."""
        assert self.into is not None
        if self.weights is not None:
            kept, merged = (
                rows * w.unsqueeze(-1).to(rows.dtype) for rows, w in zip((kept, merged), self.weights, strict=True)
            )
        batch, stay, _ = kept.shape
        rows = self.into + torch.arange(0, batch * stay, stay, device=kept.device).unsqueeze(1)
        return kept.flatten(0, 1).index_add(0, rows.flatten(), merged.flatten(0, 1)).view_as(kept)

    def places(self, places: Tensor) -> Tensor:
        """Where the rows stand: (1 | B, N, 1) -> (B, count, 1). A merged token stands where what it is merged into
        does; one that is appended stands nowhere, -1."""
        kept = gather(places.expand(len(self.stay), -1, -1), 0, self.stay)
        return kept if self.fused is None else torch.nn.functional.pad(kept, (0, 0, 0, 1), value=-1)

    def ends(self, length: int, device: torch.device) -> Tensor:
        """Which row each of `length` rows ended in, -1 for one that was dropped: (B, N)."""
        ended = torch.full((len(self.stay), length), -1, device=device)
        ended.scatter_(1, self.stay, torch.arange(self.stay.shape[1], device=device).expand_as(self.stay))
        if self.merged is not None and self.into is not None:
            ended.scatter_(1, self.merged, self.into)
        return ended if self.fused is None else ended.scatter_(1, self.fused, self.stay.shape[1])
