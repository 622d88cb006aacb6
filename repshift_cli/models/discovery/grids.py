"""The stages of a CNN that nobody wrote a family for, found by what its blocks compute: y = x + F(x), on grids.

A residual block puts out the sum of its input, or of a projection of it, and of what a later module makes, or an
activation of that sum. A stage is a run of such blocks that put out one shape (channels, rows, columns). The shift
across it is D(stage(x), x), with x as what its residual path begins with (`base/stages.py` has the same of ResNet and
ConvNeXt): the projection in the first block's shortcut (ResNet, RegNet), else what that block is given. MobileNet and
EfficientNet change the shape by a block without a shortcut, so there x is what that block puts out; a stage of no other
block has no residual path, hence no shift, and is none here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.kernels.sdpa import heard_by
from repshift_cli.models.discovery.blocks import NoSites
from repshift_cli.records import (
    REMOVALS,
    Facts,
    Keep,
    Site,
    UsageError,
    call,
    dropped_share,
    keeps_of,
    lines_left,
    one_line,
)

SAMPLE = 4096
"""So many numbers of a tensor stand for it, the same places in every tensor of a shape: sums are formed number by
number, so that a sum that holds bit for bit in these holds."""

Shape = tuple[int, int, int]
"""Channels, rows, columns."""


@dataclass
class _Call:
    """One run of a module: what it was given and what it put out, by a sample of each; None for no grid."""

    path: str
    module: nn.Module
    given: tuple[Shape, Tensor] | None
    result: tuple[Shape, Tensor] | None = None
    kept: bool = True
    """Whether what it was given is the same after it has run."""
    inside: list[_Call] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """By paths: the module that puts the stage's grid out, and the one that puts x out (None: x is its input)."""

    block: str
    origin: str | None
    shape: Shape


@dataclass(frozen=True)
class Stages:
    """The stages of a model, found in a copy of it that may be on the meta device."""

    name: str
    module: nn.Module
    inputs: Any
    stages: tuple[Stage, ...]

    def sites(self, module: nn.Module) -> tuple[Site, ...]:
        """The stages in a model of the same make."""
        paths = ((stage.block, stage.origin) for stage in self.stages)
        return tuple(Site(module.get_submodule(b), origin=o and module.get_submodule(o)) for b, o in paths)

    @property
    def facts(self) -> Facts:
        """What planning must know, but for the size of the images and the weights."""
        _, height, width = self.stages[0].shape
        return Facts(
            depth=len(self.stages),
            tokens=height * width,
            prefix=0,
            operations=("block",),
            attention=False,
            removals=REMOVALS,
            along=lru_cache(maxsize=256)(self.along),
        )

    def along(self, keep: Keep, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens at stage 1 and after each cut, from a forward in which the first lines stay.

        UsageError where what follows a cut cannot take the grid.
        """
        shares = {layer: dropped_share(share) for layer, share in zip(layers, keeps_of(keep, layers), strict=True)}
        try:
            return self.cut({layer: partial(lines_left, number=n, of=of) for layer, (n, of) in shares.items()})
        except Exception as error:  # whatever a layer says of a grid that it cannot take
            raise UsageError(
                f"{self.name} cannot take its grid cut to keep {keep} after stages {layers}: {one_line(error)}; "
                "give a larger --keep or --image-size"
            ) from error

    def cut(self, left: Mapping[int, Callable[[int], int]]) -> tuple[int, ...]:
        """The same where `left` says how many lines stay of so many behind a stage; any error that a layer raises."""
        counts: list[int] = []

        def hook(number: int) -> Callable[[Any, Any, Tensor], Tensor]:
            def behind(module: Any, args: Any, output: Tensor) -> Tensor:
                rows, columns = output.shape[-2:]
                if number == 1:
                    counts.append(rows * columns)
                if number in left:
                    rows, columns = left[number](rows), left[number](columns)
                    counts.append(rows * columns)
                return output[..., :rows, :columns]

            return behind

        sites = enumerate(self.sites(self.module), start=1)
        handles = [site.block.register_forward_hook(hook(number)) for number, site in sites]
        with _hooked(handles), torch.inference_mode():
            call(self.module, self.inputs)
        return tuple(counts)


def find_stages(name: str, module: nn.Module, inputs: Any, sketch: tuple[nn.Module, Any] | None = None) -> Stages:
    """The stages of `module`, from one forward on `inputs` (a dict or a tuple of tensors).

    `sketch` is a copy on the meta device with its inputs, which is run for every question of planning; without one the
    module is. NoSites where a cut between stages cannot be.
    """
    heard: list[Any] = []
    with heard_by(heard.append):
        calls = _watched(module, inputs)
    if heard:
        raise _refused("it has attention between all places of a grid, not only convolutions", calls)
    blocks = [c for c in _walk(calls) if _residual(c)]
    if not blocks:
        raise _refused("no convolutional block of it computes x + F(x)", calls)
    if changed := next((c for c in blocks if not c.kept), None):
        raise _refused(f"{changed.path} overwrites its input, so no shift can be taken from it", calls)
    times = Counter(c.path for c in _walk(calls))
    stages = tuple(_stages(calls, blocks))
    looked_at = [path for stage in stages for path in (stage.block, stage.origin) if path is not None]
    if several := next((path for path in (*(c.path for c in blocks), *looked_at) if times[path] > 1), None):
        raise _refused(f"{several} runs more than once, so no hook can tell its runs apart", calls)
    found = Stages(name, *(sketch or (module, inputs)), stages)
    try:
        found.cut({number: lambda lines: max(lines - 1, 1) for number in range(1, len(found.stages) + 1)})
    except Exception as error:
        said = f"what lies between its stages needs their grids whole: {one_line(error)}"
        raise _refused(said, calls) from error
    return found


def _refused(why: str, calls: Sequence[_Call]) -> NoSites:
    looked = dict.fromkeys(type(c.module).__name__ for c in _walk(calls) if c.inside)
    return NoSites(why, [(", ".join(looked), why)])


# --- one forward, watched ---------------------------------------------------------------------------------------------


def _watched(module: nn.Module, inputs: Any) -> list[_Call]:
    """What runs in the model, one call inside another, in order."""
    tops: list[_Call] = []
    open_calls: list[_Call] = []

    def begin(path: str) -> Callable[..., None]:
        def before(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            one = _Call(path, m, _sampled(_first(args, kwargs)))
            (open_calls[-1].inside if open_calls else tops).append(one)
            open_calls.append(one)

        return before

    def end(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        one = open_calls.pop()
        one.result = _sampled(output)
        one.kept = one.given is None or _same(_sampled(_first(args, kwargs)), one.given)

    handles = []
    for path, m in module.named_modules():
        handles.append(m.register_forward_pre_hook(begin(path), with_kwargs=True))
        handles.append(m.register_forward_hook(end, with_kwargs=True))
    with _hooked(handles), torch.inference_mode():
        call(module, inputs)
    return tops


@contextmanager
def _hooked(handles: Any) -> Iterator[None]:
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return next(iter((*args, *kwargs.values())), None)


def _sampled(value: Any) -> tuple[Shape, Tensor] | None:
    """The shape of a grid (B, C, H, W) and a sample of it."""
    if not isinstance(value, Tensor) or value.ndim != 4 or not value.numel():
        return None
    flat = value.detach().reshape(-1)
    places = torch.linspace(0, flat.numel() - 1, SAMPLE, dtype=torch.float64, device=flat.device).long()
    _, channels, rows, columns = value.shape
    return (channels, rows, columns), flat[places]


def _same(one: tuple[Shape, Tensor] | None, other: tuple[Shape, Tensor] | None) -> bool:
    return one is not None and other is not None and one[0] == other[0] and torch.equal(one[1], other[1])


def _walk(calls: Sequence[_Call]) -> Iterator[_Call]:
    """Every call, those inside before the one that they are in."""
    for one in calls:
        yield from _walk(one.inside)
        yield one


# --- residual blocks --------------------------------------------------------------------------------------------------


def _residual(block: _Call) -> bool:
    """Whether it is the innermost block of a sum."""
    return _shortcut(block) is not None and not any(_residual(inner) for inner in block.inside)


def _shortcut(block: _Call) -> str | None:
    """The path of the projection in its shortcut, "" where that is the input itself; None where it forms no sum."""
    out, given = block.result, block.given
    convolves = any(isinstance(m, nn.Conv2d) for m in block.module.modules())
    if out is None or given is None or not block.inside or not convolves or not out[1].any():
        return None
    inside = [c for c in _walk(block.inside) if c.result is not None and c.result[0] == out[0]]
    if given[0] == out[0] and any(_sums(block, given, c) for c in inside):
        return ""
    reading = [c for c in inside if _same(c.given, given)]
    found = [c for c in reading if c.result and any(_sums(block, c.result, other) for other in inside)]
    lightest = min(found, key=lambda c: (_convolutions(c.module), len(c.path)), default=None)
    return None if lightest is None else lightest.path


def _sums(block: _Call, shortcut: tuple[Shape, Tensor], branch: _Call) -> bool:
    """Whether the block puts out shortcut + branch, or an activation of it."""
    assert block.result is not None and branch.result is not None
    if branch.result[0] != shortcut[0]:
        return False
    total, out = shortcut[1] + branch.result[1], block.result[1]
    if torch.equal(total, out) or torch.equal(total.relu(), out):
        return True
    last = block.inside[-1]
    return _same(last.result, block.result) and last.given is not None and torch.equal(last.given[1], total)


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


# --- stages -----------------------------------------------------------------------------------------------------------


def _stages(calls: Sequence[_Call], blocks: Sequence[_Call]) -> Iterator[Stage]:
    """Runs of blocks of one shape, each with where it ends and where its x comes from."""
    runs: list[list[_Call]] = []
    for block in blocks:
        assert block.result is not None
        if runs and runs[-1][-1].result and runs[-1][-1].result[0] == block.result[0]:
            runs[-1].append(block)
        else:
            runs.append([block])
    for run in runs:
        first, last = run[0], run[-1]
        assert last.result is not None
        end = _outermost(calls, last, {b.path for b in blocks if b not in run})
        x = _shortcut(first) or _putting_out(calls, first, end)
        yield Stage(end.path, x, last.result[0])


def _outermost(calls: Sequence[_Call], last: _Call, others: set[str]) -> _Call:
    """The largest module that puts out what the last block does, and holds no block of another stage."""
    around = [c for c in _walk(calls) if c is last or _holds(c, last.path)]
    fitting = [c for c in around if _same(c.result, last.result) and not any(_holds(c, path) for path in others)]
    return fitting[-1]


def _holds(one: _Call, path: str) -> bool:
    return not one.path or path.startswith(f"{one.path}.")


def _putting_out(calls: Sequence[_Call], first: _Call, end: _Call) -> str | None:
    """The path of what puts out the first block's input; None where that is the input of the stage's own module."""
    if _same(end.given, first.given):
        return None
    before = []
    for one in _walk(calls):
        if one is first or _holds(first, one.path):
            break
        before.append(one)
    found = [c for c in before if _same(c.result, first.given)]
    if not found:
        raise _refused(f"no module puts out what {first.path} is given, so no shift can be taken from it", calls)
    return found[-1].path
