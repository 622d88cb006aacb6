"""How the grid of a CNN gets smaller behind a stage: whole rows and columns go, or as many tokens of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels.cut import gather
from repshift_cli.kernels.select import top
from repshift_cli.profiling.annotations import part
from repshift_cli.records import Case, Site, UsageError, lines_left
from repshift_cli.reduction import Method
from repshift_cli.reduction.engine.seen import Seen, needs, scores_of
from repshift_cli.reduction.engine.selection import _on, tell

Size = tuple[int, int]
"""Rows and columns."""
SEEN = ("resid_pre", "resid_post")
"""What a stage shows of itself: it has neither attention nor MLP."""


def hooks(
    site: Site, method: Method, case: Case, share: tuple[int, int], note: Callable[[Callable[[], Tensor]], None]
) -> Iterator[Any]:
    """Hooks that cut the stage's output (B, C, H, W) in both directions; the method sees it as tokens, (B, H W, C).

    A method that chooses places chooses among the rows and among the columns. `note` is given a way to those that stay.
    UsageError for a method that looks at more than a stage has.
    """
    needed = needs(method, case)
    if not set(needed) <= set(SEEN) or method.reduce is not None or method.hear is not None or share[1] == 0:
        raise UsageError(
            f"{case.pruning} cannot cut the grid of {case.model}: choose one that scores or chooses tokens"
        )
    seen = Seen()
    if "resid_pre" in needed:
        yield _watch(site, seen)

    def at_end(module: Any, args: Any, output: Tensor) -> Tensor:
        height, width = output.shape[-2:]
        size = lines_left(height, *share), lines_left(width, *share)
        if method.choose is not None:
            rows, columns = method.choose(height, size[0]), method.choose(width, size[1])
            device = output.device
            note(lambda: _crossings_of(rows, columns, width, device))
            with part("cut"):
                return _chosen(output, rows, columns)
        seen["resid_post"] = seen["rows"] = _tokens(output)
        with part("score"):
            scores = scores_of(method, seen, case)
        tell(scores)
        with part("select"):
            places = REMOVE[case.removal or "line"](scores.unflatten(1, (height, width)), size)
        seen.clear()
        note(lambda: places)
        with part("cut"):
            return picked(output, places, size)

    yield site.block.register_forward_hook(at_end)


def _watch(site: Site, seen: Seen) -> Any:
    """Hook that keeps x: the stage's input, or what its origin makes of it."""

    def see_input(module: Any, args: tuple[Any, ...]) -> None:
        seen["resid_pre"] = _tokens(args[0])

    def see_output(module: Any, args: Any, output: Tensor) -> None:
        seen["resid_pre"] = _tokens(output)

    if site.origin is None:
        return site.block.register_forward_pre_hook(see_input)
    return site.origin.register_forward_hook(see_output)


def _tokens(grid: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C), a view."""
    return grid.flatten(2).transpose(1, 2)


# --- which places stay ------------------------------------------------------------------------------------------------


def by_line(scores: Tensor, size: Size) -> Tensor:
    """The rows and the columns of the highest mean score, both means over the whole grid: (B, H, W) -> (B, h w) places.

    Choi et al. 2025 (arXiv 2508.00367), "line-wise"; of equal lines the first stay, and all keep their order.
    """
    return _crossings(top(scores.mean(2), size[0]), top(scores.mean(1), size[1]), scores.shape[2])


def by_token(scores: Tensor, size: Size) -> Tensor:
    """The highest tokens of each row, moved together, then those of each column: (B, H, W) -> (B, h w) places.

    Choi et al. 2025 (arXiv 2508.00367), "token-wise"; of equal tokens the first stay, and all keep their order.
    """
    height, width = scores.shape[1:]
    inside = _top_of_each(scores, size[1])
    rows = torch.arange(0, height * width, width, device=scores.device).unsqueeze(1)
    columns = _top_of_each(scores.gather(2, inside).transpose(1, 2), size[0]).transpose(1, 2)
    return (inside + rows).gather(1, columns).flatten(1)


REMOVE: dict[str, Callable[[Tensor, Size], Tensor]] = {"line": by_line, "token": by_token}


def _top_of_each(scores: Tensor, stay: int) -> Tensor:
    """`top` of every line: (B, lines, N) -> (B, lines, stay)."""
    return top(scores.flatten(0, 1), stay).unflatten(0, scores.shape[:2])


def _crossings(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """The places where rows (B, h) and columns (B, w) cross: (B, h w)."""
    return (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1)


# --- the cut ----------------------------------------------------------------------------------------------------------


def _chosen(grid: Tensor, rows: Any, columns: Any) -> Tensor:
    """The grid of these rows and columns, the same in every sample; the first ones of both are a view."""
    size = len(rows), len(columns)
    if rows == range(size[0]) and columns == range(size[1]):
        return grid[:, :, : size[0], : size[1]]
    return picked(grid, _crossings_of(rows, columns, grid.shape[3], grid.device), size)


def _crossings_of(rows: Any, columns: Any, width: int, device: torch.device) -> Tensor:
    one, other = (_on(tuple(places), device).unsqueeze(0) for places in (rows, columns))
    return _crossings(one, other, width)


def picked(grid: Tensor, places: Tensor, size: Size) -> Tensor:
    """The tokens at `places` (B | 1, h w) as a smaller grid: (B, C, H, W) -> (B, C, h, w), its memory format kept.

    A change of format would change the convolutions behind it, and pruning would be credited with that.
    """
    places = places.expand(len(grid), -1)
    if grid.is_contiguous(memory_format=torch.channels_last) and not grid.is_contiguous():
        return gather(_tokens(grid), 0, places).transpose(1, 2).unflatten(2, size)
    return grid.flatten(2).gather(2, places.unsqueeze(1).expand(-1, grid.shape[1], -1)).unflatten(2, size)
