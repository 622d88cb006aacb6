"""Which places of an input stayed in a forward: read from the engine as it cuts, traced back through all cuts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from repshift_cli import registry
from repshift_cli.benchmark.builder import within
from repshift_cli.models.inputs.clips import clip_pixels
from repshift_cli.models.inputs.images import image_pixels
from repshift_cli.models.inputs.sentences import pieces
from repshift_cli.records import Case, Subject, UsageError, call, dropped_share, keeps_of, lines_left, shares_of
from repshift_cli.records.places import Cut, Picture, Shown, Trace
from repshift_cli.reduction.engine.selection import listening
from repshift_cli.reduction.engine.state import tokens_of

CHECKPOINT = "hf:"
"""What a model's name begins with where the rest is the folder, or the hub id, of its checkpoint and tokenizer."""
Grid = tuple[int, int]
"""Rows and columns."""
Groups = tuple[tuple[int, ...], ...]


def traced(case: Case, subject: Subject) -> tuple[Trace, Shown]:
    """Run the case once on its subject's inputs, and say what became of the places of the first sample."""
    scores: list[Tensor] = []
    with _sizes(subject, case) as sizes, within(case, subject, noting=True) as dropped, listening(scores.append):
        call(subject.module, subject.inputs)
        kept = [[place for place in places[0].tolist() if place >= 0] for places in dropped.kept]  # -1: appended
        groups = [merged(one.places[0].tolist(), one.ends[0].tolist()) for one in dropped.traced]
    told = [s[0].float().tolist() for s in scores] if _scores(case) else []
    if subject.grid:
        grids = [(int(size[-2]), int(size[-1])) for size in sizes]
        first = grids[0][0] * grids[0][1]
        cuts = tuple(_of_grids(case, grids, kept, told))
        return Trace(case, cuts), _pictured(case, subject, first, range(first), grids[0])
    places = int(sizes[0][1])
    return Trace(case, tuple(_of_rows(case, subject, places, kept, told, groups))), _shown(case, subject, places)


def _scores(case: Case) -> bool:
    """Whether the method scores tokens, instead of choosing them without looking."""
    return registry.load(registry.find("reduction", case.pruning)).score is not None


@contextmanager
def _sizes(subject: Subject, case: Case) -> Iterator[list[torch.Size]]:
    """The shapes of what is cut, before each cut: a block's input (B, N, C), or a stage's output (B, C, H, W)."""
    found: list[torch.Size] = []

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(tokens_of((*args, *kwargs.values())).shape)

    def behind(module: Any, args: Any, output: Tensor) -> None:
        found.append(output.shape)

    blocks = [subject.sites[layer - 1].block for layer in case.layers]
    if subject.grid:
        handles = [block.register_forward_hook(behind) for block in blocks]
    else:
        handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


# --- cuts -------------------------------------------------------------------------------------------------------------


def merged(places: Sequence[int], ends: Sequence[int]) -> Groups:
    """The places that became one token, the one that stands for them first.

    `places` are those of the rows still there (-1 for an appended one, which stands in no place), `ends` the row of
    every place of the input, as in the engine's `Traced`.
    """
    rows: dict[int, list[int]] = {}
    for place, row in enumerate(ends):
        rows.setdefault(row, []).append(place)
    whole = [(places[row], *(p for p in own if p != places[row])) for row, own in rows.items() if row >= 0]
    return tuple(group for group in whole if len(group) > 1 and group[0] >= 0)


def _of_rows(
    case: Case,
    subject: Subject,
    places: int,
    kept: Sequence[Sequence[int]],
    scores: Sequence[Sequence[float]],
    groups: Sequence[Groups],
) -> Iterator[Cut]:
    """The cuts of a row of tokens. The engine tells places of the input; scores are of what was there, in its order."""
    there: Sequence[int] = range(places)
    for i, (layer, stay) in enumerate(zip(shares_of(case), kept, strict=True)):
        told = scores[i] if i < len(scores) else ()
        first = 0 if len(told) == len(there) else subject.prefix
        yield Cut(layer, frozenset(there), frozenset(stay), dict(zip(there[first:], told, strict=False)), groups[i])
        there = stay


def _of_grids(
    case: Case, grids: Sequence[Grid], kept: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]
) -> Iterator[Cut]:
    """The cuts of grids, all as places of the first one: a cell of a later grid stands for those that it covers."""
    covers: list[tuple[int, ...]] = [(place,) for place in range(grids[0][0] * grids[0][1])]
    shares = [dropped_share(keep) for keep in keeps_of(case.keep, case.layers)]
    for i, (layer, stay) in enumerate(zip(case.layers, kept, strict=True)):
        there = frozenset(place for cell in covers for place in cell)
        told = dict(zip(range(len(covers)), scores[i], strict=True)) if i < len(scores) else {}
        by_place = {place: told[cell] for cell in told for place in covers[cell]}
        remaining = [covers[cell] for cell in stay]
        yield Cut(layer, there, frozenset(place for cell in remaining for place in cell), by_place)
        if i + 1 < len(grids):
            left = (lines_left(grids[i][0], *shares[i]), lines_left(grids[i][1], *shares[i]))
            covers = covering(remaining, left, grids[i + 1])


def covering(cells: Sequence[tuple[int, ...]], before: Grid, after: Grid) -> list[tuple[int, ...]]:
    """What each cell of a coarser grid `after` covers of a grid `before` whose cells stand for these places."""
    (h, w), (rows, columns) = before, after
    found = []
    for row in range(rows):
        for column in range(columns):
            ys = range(row * h // rows, max(row * h // rows + 1, -(-(row + 1) * h // rows)))
            xs = range(column * w // columns, max(column * w // columns + 1, -(-(column + 1) * w // columns)))
            found.append(tuple(place for y in ys for x in xs for place in cells[y * w + x]))
    return found


# --- what they are places of ------------------------------------------------------------------------------------------


def _shown(case: Case, subject: Subject, places: int) -> Shown:
    inputs = subject.inputs.values() if isinstance(subject.inputs, dict) else subject.inputs
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    ids = next((t for t in tensors if t.ndim == 2 and not t.is_floating_point()), None)
    if ids is not None and ids.shape[1] == places:
        return Shown(places, words=_words(case, ids[0].tolist()))
    if not any(t.ndim in (4, 5) for t in tensors):
        return Shown(places)
    prefix = subject.prefix if subject.own_prefix is None else subject.own_prefix
    cells = [*range(prefix, places - subject.suffix)]
    if subject.central:
        del cells[len(cells) // 2]
    return _pictured(case, subject, places, cells, None)


def _words(case: Case, ids: Sequence[int]) -> tuple[str, ...]:
    """The tokens as text, or their numbers where there is no tokenizer."""
    if case.model.startswith(CHECKPOINT):
        return pieces(case.model.removeprefix(CHECKPOINT), ids)
    return tuple(f"#{number}" for number in ids)


def _pictured(case: Case, subject: Subject, places: int, cells: Sequence[int], size: Grid | None) -> Shown:
    """The pictures of the first sample, and the grid that its places make of them."""
    inputs = subject.inputs.values() if isinstance(subject.inputs, dict) else subject.inputs
    pixels = next(t for t in inputs if isinstance(t, Tensor) and t.ndim in (4, 5))[0].float().cpu()
    frames = pixels.unsqueeze(0) if pixels.ndim == 3 else pixels if pixels.shape[1] == 3 else pixels.transpose(0, 1)
    height, width = frames.shape[-2:]
    grid = (1, *size) if size else grid_of(len(cells), len(frames), height, width)
    if grid is None:
        return Shown(places)
    rgb = _bytes(case, frames)
    return Shown(places, grid, tuple(cells), tuple(Picture(width, height, one) for one in rgb))


def grid_of(cells: int, frames: int, height: int, width: int) -> tuple[int, int, int] | None:
    """Moments, rows and columns of so many cells over frames of this size, patches being square; None where none fit.

    A moment stands for one frame, or for as few together as possible.
    """
    for together in range(1, frames + 1):
        moments, rest = divmod(frames, together)
        if rest or cells % moments:
            continue
        rows = math.isqrt(cells // moments * height // width)
        if rows and cells // moments % rows == 0:
            columns = cells // moments // rows
            if height % rows == 0 and width % columns == 0 and height // rows == width // columns:
                return (moments, rows, columns)
    return None


def _bytes(case: Case, frames: Tensor) -> list[bytes]:
    """The frames (T, 3, H, W) as they were read, before they were normalised; random ones from least to most."""
    size = frames.shape[-1]
    if case.input == "random":
        low, high = frames.min(), frames.max()
        scaled = ((frames - low) / (high - low) * 255).round().to(torch.uint8).movedim(1, -1)
        return [one.contiguous().numpy().tobytes() for one in scaled]
    if frames.shape[-2] != size:
        raise UsageError(f"the pictures of {case.model} are not square, so they cannot be shown; leave out --data")
    read = image_pixels(case.input, size) if case.frames is None else clip_pixels(case.input, case.frames, size)[0]
    return [one.tobytes() for one in read[: len(frames)]]
