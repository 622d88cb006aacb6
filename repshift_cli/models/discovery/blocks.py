"""Finding a model's blocks and branches by what they compute, not by what a library calls them.

A pre-norm block computes x' = x + A and x^ = x' + M, a post-norm block x' = norm(x + A) and x^ = norm(x' + M), a block
of a state space model x^ = x + A. One forward through the first block, with every module inside it watched, shows which
module put out A and which M: the ones for which the sums hold bit for bit. So LayerScale, qk-norm and next year's names
are all the same to us, and a block that computes something else is refused, not misread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from repshift_cli.models.discovery.arguments import PLACES, Companions, companions, mixing
from repshift_cli.models.discovery.arguments import rows_of as _rows
from repshift_cli.models.discovery.parallel import parallel_branches
from repshift_cli.models.discovery.scaled import scaled_branches
from repshift_cli.records import Site, UsageError, call

CAUSAL = "its blocks are causal: whether they count their tokens by themselves, not by an argument, cannot be told"


BUILT_IN = {
    "ResNet": "resnet18, resnet34 or resnet50, a CNN cut between its stages",
    "ConvNeXt": "convnext_t, convnext_s or convnext_b, a CNN cut between its stages",
    "VisionMamba": "vim_t or vim_s",
    "MambaLMHeadModel": "mamba_130m or mamba2_130m and larger ones",
}
"""Classes of other libraries whose blocks cannot be found, with the aliases of the same architecture here."""


class NoSites(UsageError):
    """The model has no repeated block that could be understood; the sentence says what was looked for.

    `looked` has a pair for every list of repeated modules that was looked at: what it is, and why it will not do.
    `adapter` names what would do, where branches were found that parameters scale.
    """

    def __init__(
        self, message: str, looked: Sequence[tuple[str, str]] = (), adapter: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.looked = tuple(looked)
        self.adapter = dict(adapter or {})


@dataclass(frozen=True)
class Found:
    """The blocks in order, the tokens (protected ones included) that enter the first, and `Subject.companions`."""

    sites: tuple[Site, ...]
    entering: int
    companions: tuple[str, ...] = ()
    spread: int = 0
    warnings: tuple[str, ...] = ()
    biased: bool = False


class _Seen(Exception):
    """Ends the forward once the first block has been watched."""


_Call = tuple[str, Tensor, Tensor]
"""A module's path inside its block, its input and its output."""


@dataclass
class Trace:
    """One forward of a block: its input x, its output, and (path, input, output) of each module inside.

    `given` are the positional and the keyword arguments, with `tokens` among them, of which x is a copy.
    """

    x: Tensor
    tokens: Tensor
    given: tuple[tuple[Any, ...], dict[str, Any]]
    out: Tensor | None = None
    calls: list[_Call] = field(default_factory=list)


def find_sites(module: nn.Module, inputs: Any, scanning: bool = False, undivided: bool = False) -> Found:
    """The blocks of `module`, from one forward that ends after the first of them.

    `inputs` is a dict or a tuple of tensors. `scanning`: the family knows that its blocks go by the order of their
    tokens alone, in a scan or a convolution over whatever tokens there are, which dropping is meant to shorten.
    `undivided`: where the branches of the largest blocks cannot be told apart (parallel ones), the whole is a site, if
    it mixes its tokens and the blocks follow each other. Raises NoSites.
    """
    looked: list[tuple[str, str]] = []
    seen: list[str] = []
    adapter: dict[str, str] = {}
    prefix = prefix_tokens(module)
    for blocks in _repeated(module):
        trace = watch_first(module, blocks[0], inputs)
        paths = _branches(trace, blocks, undivided, prefix) if trace is not None else None
        if paths is not None and paths[1] == "" and not successive(module, blocks, inputs):
            paths = None  # any sum of two looks like parallel branches: these must be blocks of one row too
        if trace is None or paths is None:
            whole = _undivided(module, blocks, trace, inputs) if undivided and trace and not seen else ""
            if isinstance(whole, Found):
                return whole
            looked.append((pattern(module, blocks), whole or _why_not(trace)))
            adapter = adapter or _adapter(module, blocks, trace)
            seen += [type(blocks[0]).__name__ + (_folding(trace) or (whole and f" ({whole})"))] if trace else []
            continue
        site = site_of(blocks[0], *paths)
        beside = companions(blocks[0], (site.attention,), trace.x, trace.tokens, trace.given, prefix)
        if beside.unfit is not None and not (scanning and beside.unfit == PLACES):
            name = type(blocks[0]).__name__
            looked.append((pattern(module, blocks), f"they {beside.unfit}"))
            raise NoSites(f"{type(module).__name__}: its blocks ({name}) {beside.unfit}; none can be dropped", looked)
        whole_found = found(blocks, paths, trace.x.shape[1], beside)
        if paths[2] is not None and paths[1] and _pre_norm(once(trace), trace) is None:
            whole_found = replace(whole_found, sites=tuple(replace(s, post_norm=True) for s in whole_found.sites))
        return whole_found
    names = ", ".join(dict.fromkeys(seen))
    raise NoSites(
        f"{type(module).__name__} has no repeated block that computes x' = x + A(x) and x'' = x' + MLP(x'), with norms "
        "in the branches or behind the sums, on tensors (batch, tokens, channels)"
        + (f"; looked at {names}" if names else "")
        + (", whose branches are scaled by parameters of the block" if adapter else ""),
        looked,
        adapter,
    )


def _adapter(module: nn.Module, blocks: list[nn.Module], trace: Trace | None) -> dict[str, str]:
    """The adapter that would do for blocks whose branches are scaled by parameters."""
    branches = scaled_branches(once(trace), trace.x, trace.out) if trace is not None and trace.out is not None else {}
    path = next((name for name, m in module.named_modules() if blocks[0] in m.children()), "")
    return {"blocks": path, **branches} if branches and path else {}


def _undivided(module: nn.Module, blocks: list[nn.Module], trace: Trace, inputs: Any) -> Found | str:
    """Blocks as sites of their own, without branches, or why that will not do."""
    inner = tuple(blocks[0].modules())[1:]
    given = (blocks[0], inner, trace.x, trace.tokens, trace.given, prefix_tokens(module))
    beside = companions(*given)
    if beside.unfit is not None:
        return f"they {beside.unfit}"
    if beside.causal or not mixing(*given, beside.spread):
        return "they do not change every token by what the others are"
    if not successive(module, blocks, inputs):
        return "they do not hand all tokens on to each other"
    return found(blocks, (), trace.x.shape[1], beside)


def _folding(trace: Trace) -> str:
    """What is said of a block in which some module sees another batch than the block: windows, divided attention."""
    if all(len(result) == len(trace.x) for _, _, result in trace.calls):
        return ""
    return " (which folds its tokens into the batch, as windows or frames and positions apart, and needs all of them)"


def found(blocks: Sequence[nn.Module], paths: Sequence[str | None], entering: int, beside: Companions) -> Found:
    """What was found, of blocks whose parts lie at the same `paths` (attention, middle, mlp) in all of them."""
    warnings = (CAUSAL,) if beside.causal else ()
    sites = tuple(site_of(block, *paths) for block in blocks)
    return Found(sites, entering, beside.names, beside.spread, warnings, beside.biased)


NEVER = "never ran, or not on one tensor (batch, tokens, channels) to another"


def _why_not(trace: Trace | None) -> str:
    """Why the two sums do not hold in a block."""
    if trace is None:
        return NEVER
    calls = once(trace)
    sums = [(a, m) for i, (m, given, _) in enumerate(calls) if (a := last_adding(calls[:i], trace.x, given))]
    if not sums:
        return "no module's output A makes x + A the input of a later module" + _folding(trace)
    named = f"x + {sums[0][0]}(...) is the input of {sums[0][1]}"
    return f"{named}, but no later module's output M makes the sum with that input the block's output"


def pattern(module: nn.Module, blocks: Sequence[nn.Module]) -> str:
    """`vit.layers.0 ... vit.layers.11 (ViTLayer)`."""
    names = {id(m): name for name, m in module.named_modules(remove_duplicate=False)}
    ends = [names.get(id(block), "?") for block in (blocks[0], blocks[-1])]
    return f"{' ... '.join(dict.fromkeys(ends))} ({type(blocks[0]).__name__})"


def successive(module: nn.Module, blocks: Sequence[nn.Module], inputs: Any) -> bool:
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


def watch_first(module: nn.Module, block: nn.Module, inputs: Any) -> Trace | None:
    """The trace of the first forward of `block`, or None where it never runs on (B, N, C) alone."""
    traces: list[Trace] = []

    def begin(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = _rows((*args, *kwargs.values()))
        if x is None:
            raise _Seen
        traces.append(Trace(x.clone(), x, (args, kwargs)))

    def end(m: nn.Module, args: Any, output: Any) -> None:
        traces[0].out = _rows(output)
        raise _Seen

    with _hooked(_inside(block, traces), (block, begin, end)), torch.inference_mode(), suppress(_Seen):
        call(module, inputs)
    return traces[0] if traces and traces[0].out is not None else None


def _inside(block: nn.Module, traces: list[Trace]) -> list[Any]:
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


_Paths = tuple[str, str | None, str | None]


def _branches(trace: Trace, blocks: list[nn.Module], undivided: bool, prefix: int) -> _Paths | None:
    """Paths of (attention, middle, mlp) inside the first block, or None where neither sum holds.

    `middle` is the first module that reads x'; of several modules with the same output (a dropout behind a linear) the
    last is taken, so that LayerScale and the like belong to the branch. Modules that run more than once in a block (one
    dropout for both branches) are passed over: a hook on them could not tell the branches apart. Where blocks
    may be `undivided`, a single branch is the sum of parallel ones, none.
    """
    calls = once(trace)
    both = _pre_norm(calls, trace) or _post_norm(calls, trace)
    if both is None:
        both = parallel_branches(blocks[0], calls, trace.x, trace.out, trace.tokens, trace.given, prefix)
    return both or (None if undivided else _single(trace, blocks))


def once(trace: Trace) -> list[_Call]:
    """The calls of modules that ran once in the block."""
    times = Counter(path for path, _, _ in trace.calls)
    return [c for c in trace.calls if times[c[0]] == 1]


def _pre_norm(calls: list[_Call], trace: Trace) -> _Paths | None:
    for start, (middle, candidate, _) in enumerate(calls):
        attention = last_adding(calls[:start], trace.x, candidate)
        mlp = last_adding(calls[start:], candidate, trace.out)
        if attention is not None and mlp is not None:
            return attention, middle, mlp
    return None


def _post_norm(calls: list[_Call], trace: Trace) -> _Paths | None:
    """As in BERT: one module norms x + A into x', a later one x' + M into the block's output."""
    totals = [given for _, given, result in reversed(calls) if _same(result, trace.out)]
    for end, (_, total, normed) in enumerate(calls):
        attention = last_adding(calls[:end], trace.x, total)
        middle = next((path for path, given, _ in calls[end:] if _same(given, normed)), None)
        mlp = next((path for out in totals if (path := last_adding(calls[end:], normed, out))), None)
        if attention is not None and mlp is not None and middle is not None:
            return attention, middle, mlp
    return None


def _single(trace: Trace, blocks: list[nn.Module]) -> _Paths | None:
    """As in Mamba: one branch, x^ = x + Y, which stands in the place of attention.

    It must be the same in all blocks: where attention and MLP take turns, a block is but half of one.
    """
    branch = last_adding(once(trace), trace.x, trace.out)
    if branch is None or len({type(dict(block.named_modules()).get(branch)) for block in blocks}) > 1:
        return None
    return branch, None, None


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None or (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(one, other)


def last_adding(calls: list[_Call], before: Tensor, after: Tensor | None) -> str | None:
    """The last module whose output added to `before` is `after`, bit for bit, in the dtype of `after`.

    A residual may be held in fp32 beside branches in half precision (Mamba's `residual_in_fp32`).
    """
    for path, _, result in reversed(calls):
        if after is not None and result.shape == before.shape and _same(before.to(after.dtype) + result, after):
            return path
    return None


def site_of(block: nn.Module, *paths: str | None) -> Site:
    """The site of a block by the paths of its attention, middle and mlp; None for a part that it lacks."""
    parts: list[Any] = [None if path is None else block.get_submodule(path) for path in paths]
    return Site(block, *parts)


_PREFIX_NAMES = ("cls_token", "class_token", "class_embedding", "dist_token", "distillation_token")
_REGISTER_NAMES = ("register_tokens", "reg_token")


def prefix_tokens(module: nn.Module) -> int:
    """How many leading tokens are no patches: class, distillation and register tokens, found as parameters."""
    return sum(named_prefix(module).values())


def named_prefix(module: nn.Module) -> dict[str, int]:
    """The leading tokens that are no patches, by the names that tell of them.

    timm says it itself (`num_prefix_tokens`); elsewhere the parameters' names are the field's own.
    """
    told = getattr(module, "num_prefix_tokens", None)
    if isinstance(told, int):
        return {"num_prefix_tokens": told}
    names = {name.rsplit(".", 1)[-1]: p for name, p in module.named_parameters()}
    found = {n: 1 for n in _PREFIX_NAMES if n in names}
    return found | {n: names[n].shape[-2] for n in _REGISTER_NAMES if n in names}
