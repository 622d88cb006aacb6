"""How far windows see: what one token's change does to tokens at a distance, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.arrays import axis, blocks, quantity
from repshift_cli.inspection.base.blocks import entering, own_places, visiting
from repshift_cli.inspection.base.left_out import MOST_TOKENS, copies
from repshift_cli.records.inspection import Answer, Quantity
from repshift_cli.reduction.engine.seen import Seen
from repshift_cli.reduction.engine.state import tokens_of

RANK = 5
STEP = 0.01
"""The change, over the norm of the token's state: small beside the state, large beside fp32's rounding."""
SOURCES = 8
WITHIN = 0.9
IN_ROW, ON_GRID = "in tokens of the row", "in patches of the grid, the larger of all its directions"
LEAST = 1e-6
"""Influence, over that on the token itself, below which none is told: rounding."""


def unanswerable(look: Look) -> str | None:
    """The grid of a CNN has no tokens that could be moved alone."""
    if look.subject.grid:
        return "the grid of a CNN holds no tokens that could be moved one by one"
    return None if look.subject.tokens > 2 else "there are not three tokens in a row"


def answer(look: Look) -> Answer:
    """The influence of some tokens of every input on all others, from the state that enters the first block."""
    found = []
    for number, inputs in enumerate(look.inputs):
        with look.active():
            found.append(_influence(look, inputs, number))
        look.tell((number + 1) / len(look.inputs))
    most = max(one.shape[1] for one in found)
    by_distance = torch.stack([F.pad(one, (0, most - one.shape[1]), value=torch.nan) for one in found]).nanmean(0)
    grid = grid_of(look, look.inputs[0])
    quantities = list(_quantities(by_distance, len(grid) if grid else 1))
    settings = {"inputs": len(found), "sources": SOURCES, "step": STEP, "within": WITHIN, "grid": grid}
    reading = tuple(_read(quantities))
    return Answer("reach", "How far windows see", settings=settings, quantities=tuple(quantities), reading=reading)


def grid_of(look: Look, inputs: Any) -> tuple[int, ...] | None:
    """The grid on which the tokens that may go stand, row by row: (h, w) of an image's patches, (t, h, w) of a clip's.

    None for a sequence, and where a token of the grid is protected. A clip's t are its frames, or pairs of them.
    """
    tokens = look.subject.tokens
    pixels = inputs.values() if isinstance(inputs, Mapping) else inputs
    depth = max((t.ndim for t in pixels if isinstance(t, Tensor) and t.is_floating_point()), default=0)
    frames = look.case.frames or 1
    for times in (frames, frames // 2):
        side = math.isqrt(tokens // times) if depth in (4, 5) and times and tokens % times == 0 else 0
        if side and times * side * side == tokens:
            return (times, side, side) if depth == 5 else (side, side)
    return None


def coordinates(places: Tensor, grid: tuple[int, ...] | None) -> Tensor:
    """Where tokens stand, on their grid or in their row: (n,) -> (n, k)."""
    if grid is None:
        return places.unsqueeze(1)
    return torch.stack(torch.unravel_index(places - places.min(), grid), 1)


def along_distance(
    influence: Tensor, sources: Tensor, places: Tensor, grid: tuple[int, ...] | None = None, ahead: bool = False
) -> Tensor:
    """Mean influence by distance: (m, N) of `sources` (m,) on all tokens, over pairs among `places` (n,), -> (D,).

    Distance is that in the row, on either side (`ahead`: behind the source alone), or the largest one along the
    directions of a `grid` (which the places fill), as the windows of an image are square; NaN where no pair lies so far
    apart.
    """
    at, of = coordinates(places, grid), torch.searchsorted(places, sources)
    distance = (at.unsqueeze(0) - at[of].unsqueeze(1)).abs().amax(-1)
    counted = (places >= sources.unsqueeze(1)) | torch.tensor(not ahead)
    most = int((at.amax(0) - at.amin(0)).max()) + 1
    total, count = torch.zeros(most, dtype=torch.float64), torch.zeros(most, dtype=torch.float64)
    total.index_add_(0, distance[counted], influence[:, places][counted].double())
    count.index_add_(0, distance[counted], torch.ones(int(counted.sum()), dtype=torch.float64))
    return total / count.where(count > 0, torch.nan)


def around(most: int, directions: int = 1) -> Tensor:
    """Half of the tokens at each distance, from 0 to `most` - 1, on an endless grid: in a row, one."""
    distance = torch.arange(most, dtype=torch.float64)
    ring = (2 * distance + 1) ** directions - (2 * distance - 1).clamp_min(0) ** directions
    return (ring / 2).where(distance > 0, 1)


def reach(profile: Tensor, share: float = WITHIN, directions: int = 1) -> int | None:
    """The least distance within which `share` of the influence on other tokens lies: (D,); None where there is none."""
    others = (profile * around(len(profile), directions))[1:].nan_to_num(0)
    if not others.sum():
        return None
    return int((others.cumsum(0) >= share * others.sum() * (1 - 1e-12)).nonzero()[0]) + 1


def farthest(profile: Tensor) -> int:
    """The largest distance at which there is influence at all, rounding apart: (D,)."""
    return int((profile.nan_to_num(0) > LEAST * profile[0]).nonzero().max())


# --- one input --------------------------------------------------------------------------------------------------------


def _influence(look: Look, inputs: Any, number: int) -> Tensor:
    """Mean influence by block and distance: (blocks, D)."""
    subject = look.subject
    places, grid = own_places(subject, inputs), grid_of(look, inputs)
    draw = torch.Generator().manual_seed(look.settings.seed + number)
    ahead = not _of_sources(look, inputs, places[-1:], torch.Generator().manual_seed(0))[-1][0, places[:-1]].any()
    able = places[: -(-len(places) // 2)] if ahead else places  # half of the row and more lies behind each
    count = min(SOURCES, len(able), max(1, MOST_TOKENS // entering(subject)))
    sources = able[torch.randperm(len(able), generator=draw)[:count]]
    found = _of_sources(look, inputs, sources, draw)
    return torch.stack([along_distance(one, sources, places, grid, ahead) for one in found])


def _of_sources(look: Look, inputs: Any, sources: Tensor, draw: torch.Generator) -> list[Tensor]:
    """By block the influence of each of the sources (m,) on all tokens of its copy of the sample: (m, N)."""
    given = copies(inputs, len(sources))
    plain = _states(look, given)
    with _moved(look, sources, draw):
        moved = _states(look, given)
    start = (moved[0] - plain[0])[torch.arange(len(sources)), sources].norm(dim=-1, keepdim=True)
    return [(moved[n] - plain[n]).norm(dim=-1) / start for n in range(1, len(plain))]


def _states(look: Look, given: Any) -> dict[int, Tensor]:
    """What enters the first block (0), and what each block puts out: (B, N, C), fp64."""
    states: dict[int, Tensor] = {}

    def visit(layer: int, seen: Seen) -> None:
        states.setdefault(0, seen["resid_pre"].double().cpu())
        states[layer] = seen["resid_post"].double().cpu()

    with visiting(look.subject, visit):
        look.run(given)
    return states


@contextmanager
def _moved(look: Look, sources: Tensor, draw: torch.Generator) -> Iterator[None]:
    """Within it the state that enters the first block is moved at one token of each copy, in a random direction."""

    def move(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = tokens_of((*args, *kwargs.values()))
        rows = torch.arange(len(hidden), device=hidden.device), sources.to(hidden.device)
        way = torch.randn(len(hidden), hidden.shape[-1], generator=draw).to(hidden)
        changed = hidden.clone()
        changed[rows] += STEP * hidden[rows].norm(dim=-1, keepdim=True) * way / way.norm(dim=-1, keepdim=True)
        return tuple(changed if v is hidden else v for v in args), {
            name: changed if v is hidden else v for name, v in kwargs.items()
        }

    handle = look.subject.sites[0].block.register_forward_pre_hook(move, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()


# --- all inputs -------------------------------------------------------------------------------------------------------


def _quantities(by_distance: Tensor, directions: int) -> Iterator[Quantity]:
    depth, counted = blocks(len(by_distance)), around(by_distance.shape[1], directions)
    where = ON_GRID if directions > 1 else IN_ROW
    window = farthest(by_distance[0])
    yield quantity(
        "reach",
        "reach",
        f"distance, {where}, within which {WITHIN:.0%} of a token's influence on the others lies.",
        [depth],
        [reach(profile, directions=directions) for profile in by_distance],
        low=0,
    )
    yield quantity(
        "farthest",
        "farthest",
        "largest distance at which a token has any influence.",
        [depth],
        [farthest(profile) for profile in by_distance],
        low=0,
    )
    yield quantity(
        "bound",
        "window x depth",
        "how far influence can have come: the first block's farthest times the blocks so far, at most all.",
        [depth],
        [min(window * n, by_distance.shape[1] - 1) for n in range(1, len(by_distance) + 1)],
        low=0,
    )
    yield quantity(
        "on_others",
        "on others",
        "influence on all other tokens together, over that on the token itself (half of the tokens at each distance "
        "counted: in a row, one).",
        [depth],
        [float((profile * counted)[1:].nansum() / profile[0]) for profile in by_distance],
        low=0,
    )
    yield quantity(
        "influence",
        "influence by distance",
        "Change of a token's state, over the change made at the source's entering the first block, by their distance.",
        [depth, axis("distance", range(by_distance.shape[1]))],
        by_distance,
        view="map",
        low=0,
    )


def _read(quantities: Sequence[Quantity]) -> Iterator[str]:
    by_name = {q.name: q.values for q in quantities}
    last, bound = by_name["reach"][-1], by_name["bound"][-1]
    if last is not None:
        yield (
            f"after the last block {WITHIN:.0%} of a token's influence on others lies within a distance of "
            f"{last:.0f}, of {bound:.0f} that it can reach"
        )
