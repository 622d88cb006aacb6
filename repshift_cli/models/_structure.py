"""Finding a model's blocks and branches by what they compute, not by what a library calls them.

A pre-norm block computes x' = x + A and x^ = x' + M, a post-norm block x' = norm(x + A) and x^ = norm(x' + M). One
forward through the first block, with every module inside it watched, shows which module put out A and which M: the ones
for which both sums hold bit for bit. So LayerScale, qk-norm and next year's names are all the same to us, and a block
that computes something else is refused, not misread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models._companions import companions, interchangeable
from repshift_cli.records import Site, UsageError, call


class NoSites(UsageError):
    """The model has no repeated pre-norm block that could be understood; the sentence says what was looked for."""


@dataclass(frozen=True)
class Found:
    """The blocks in order, the tokens (protected ones included) that enter the first, and `Subject.companions`."""

    sites: tuple[Site, ...]
    entering: int
    companions: tuple[str, ...] = ()
    spread: int = 0


class _Seen(Exception):
    """Ends the forward once the first block has been watched."""


_Call = tuple[str, Tensor, Tensor]
"""A module's path inside its block, its input and its output."""


@dataclass
class _Trace:
    """One forward of a block: its input x, its output, and (path, input, output) of each module inside.

    `given` are the positional and the keyword arguments, with `tokens` among them, of which x is a copy.
    """

    x: Tensor
    tokens: Tensor
    given: tuple[tuple[Any, ...], dict[str, Any]]
    out: Tensor | None = None
    calls: list[_Call] = field(default_factory=list)


def find_sites(module: nn.Module, inputs: Any) -> Found:
    """The blocks of `module`, from one forward that ends after the first of them.

    Of the largest blocks whose branches cannot be told apart (parallel ones), the whole is a site, where they mix their
    tokens as a set and follow each other. `inputs` is a dict or a tuple of tensors. Raises NoSites.
    """
    seen, prefix = list[str](), prefix_tokens(module)
    for blocks in _repeated(module):
        trace = _watch_first(module, blocks[0], inputs)
        if trace is None:
            continue
        paths, given = _branches(trace), (blocks[0], trace.x, trace.tokens, trace.given, prefix)
        beside = companions(*given) if paths is not None or not seen else None
        if paths is None:
            if not seen and beside and interchangeable(*given, beside[1]) and successive(module, blocks, inputs):
                return Found(tuple(map(Site, blocks)), trace.x.shape[1], *beside)
            whole = "" if beside or seen else " (which needs all of its tokens)"
            seen.append(type(blocks[0]).__name__ + (_folding(trace) or whole))
            continue
        if beside is None:
            raise NoSites(
                f"{type(module).__name__}: its blocks ({type(blocks[0]).__name__}) do not run on a part of their "
                "tokens: they need the whole grid, or a mask or positions of its size, so none can be dropped"
            )
        return Found(tuple(_site(block, *paths) for block in blocks), trace.x.shape[1], *beside)
    looked = f"; looked at {', '.join(dict.fromkeys(seen))}" if seen else ""
    raise NoSites(
        f"{type(module).__name__} has no repeated block that computes x' = x + A(x) and x'' = x' + MLP(x'), with norms "
        f"in the branches or behind the sums, on tensors (batch, tokens, channels){looked}"
    )


def _folding(trace: _Trace) -> str:
    """What is said of a block in which some module sees another batch than the block: windows, divided attention."""
    if all(len(result) == len(trace.x) for _, _, result in trace.calls):
        return ""
    return " (which folds its tokens into the batch, as windows or frames and positions apart, and needs all of them)"


def successive(module: nn.Module, blocks: list[nn.Module], inputs: Any) -> bool:
    """Whether each block runs on the very output of the one before it, and all of them on as many tokens.

    It looks at one forward, which ends after the last block.
    """
    given, results = list[Tensor](), list[Tensor]()

    def begin(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = _rows((*args, *kwargs.values()))
        if x is None:
            raise _Seen
        given.append(x.clone())

    def end(m: nn.Module, args: Any, output: Any) -> None:
        out = _rows(output)
        if out is None:
            raise _Seen
        results.append(out.clone())
        if m is blocks[-1]:
            raise _Seen

    handles = [h for b in blocks[1:] for h in _both(b, begin, end)]
    with _hooked(handles, (blocks[0], begin, end)), torch.inference_mode(), suppress(_Seen):
        call(module, inputs)
    shapes = {tensor.shape for tensor in (*given, *results)}
    return len(given) == len(results) == len(blocks) and len(shapes) == 1 and all(map(_same, results, given[1:]))


def _both(block: nn.Module, begin: Any, end: Any) -> list[Any]:
    return [block.register_forward_pre_hook(begin, with_kwargs=True), block.register_forward_hook(end)]


def _repeated(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Lists of two or more sibling modules of one class, the one with the most parameters first."""
    groups = []
    for parent in module.modules():
        by_class: dict[type, list[nn.Module]] = {}
        for child in parent.children():
            by_class.setdefault(type(child), []).append(child)
        groups += [g for g in by_class.values() if len(g) > 1 and next(g[0].children(), None) is not None]
    return iter(sorted(groups, key=lambda g: -sum(p.numel() for m in g for p in m.parameters())))


def _watch_first(module: nn.Module, block: nn.Module, inputs: Any) -> _Trace | None:
    """The trace of the first forward of `block`, or None where it never runs on (B, N, C) alone."""
    traces: list[_Trace] = []

    def begin(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = _rows((*args, *kwargs.values()))
        if x is None:
            raise _Seen
        traces.append(_Trace(x.clone(), x, (args, kwargs)))

    def end(m: nn.Module, args: Any, output: Any) -> None:
        traces[0].out = _rows(output)
        raise _Seen

    with _hooked(_inside(block, traces), (block, begin, end)), torch.inference_mode(), suppress(_Seen):
        call(module, inputs)
    return traces[0] if traces and traces[0].out is not None else None


def _inside(block: nn.Module, traces: list[_Trace]) -> list[Any]:
    handles = []
    for path, child in block.named_modules():

        def after(m: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, path: str = path) -> None:
            given, result = _rows((*args, *kwargs.values())), _rows(output)
            if traces and given is not None and result is not None:
                traces[0].calls.append((path, given.clone(), result.clone()))

        if path:
            handles.append(child.register_forward_hook(after, with_kwargs=True))
    return handles


@contextmanager
def _hooked(handles: list[Any], block: tuple[nn.Module, Any, Any]) -> Iterator[None]:
    module, begin, end = block
    handles += _both(module, begin, end)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rows(value: Any) -> Tensor | None:
    """The first (B, N, C) tensor of a call's arguments or result."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return next((v for v in values if isinstance(v, Tensor) and v.ndim == 3), None)


def _branches(trace: _Trace) -> tuple[str, str, str] | None:
    """Paths of (attention, middle, mlp) inside the block, or None where the two sums do not hold.

    `middle` is the first module that reads x'; of several modules with the same output (a dropout behind a linear) the
    last is taken, so that LayerScale and the like belong to the branch. Modules that run more than once in a block (one
    dropout for both branches) are passed over: a hook on them could not tell the branches apart.
    """
    times = Counter(path for path, _, _ in trace.calls)
    calls = [c for c in trace.calls if times[c[0]] == 1]
    return _pre_norm(calls, trace) or _post_norm(calls, trace)


def _pre_norm(calls: list[_Call], trace: _Trace) -> tuple[str, str, str] | None:
    for start, (middle, candidate, _) in enumerate(calls):
        attention = _last_adding(calls[:start], trace.x, candidate)
        mlp = _last_adding(calls[start:], candidate, trace.out)
        if attention is not None and mlp is not None:
            return attention, middle, mlp
    return None


def _post_norm(calls: list[_Call], trace: _Trace) -> tuple[str, str, str] | None:
    """As in BERT: one module norms x + A into x', a later one x' + M into the block's output."""
    last = next((c for c in reversed(calls) if _same(c[2], trace.out)), None)
    if last is None:
        return None
    for end, (_, total, normed) in enumerate(calls):
        attention = _last_adding(calls[:end], trace.x, total)
        mlp = _last_adding(calls[end:], normed, last[1])
        middle = next((path for path, given, _ in calls[end:] if _same(given, normed)), None)
        if attention is not None and mlp is not None and middle is not None:
            return attention, middle, mlp
    return None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and torch.equal(one, other)


def _last_adding(calls: list[_Call], before: Tensor, after: Tensor | None) -> str | None:
    """The last module whose output added to `before` is `after`, bit for bit."""
    for path, _, result in reversed(calls):
        if after is not None and result.shape == before.shape == after.shape and torch.equal(before + result, after):
            return path
    return None


def _site(block: nn.Module, attention: str, middle: str, mlp: str) -> Site:
    return Site(block, block.get_submodule(attention), block.get_submodule(middle), block.get_submodule(mlp))


_PREFIX_NAMES = ("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token")
_REGISTER_NAMES = ("register_tokens", "reg_token")


def prefix_tokens(module: nn.Module) -> int:
    """How many leading tokens are no patches: class, distillation and register tokens, found as parameters.

    timm says it itself (`num_prefix_tokens`); elsewhere the parameters' names are the field's own.
    """
    told = getattr(module, "num_prefix_tokens", None)
    if isinstance(told, int):
        return told
    names = {name.rsplit(".", 1)[-1]: p for name, p in module.named_parameters()}
    registers = sum(names[n].shape[-2] for n in _REGISTER_NAMES if n in names)
    return sum(n in names for n in _PREFIX_NAMES) + registers
