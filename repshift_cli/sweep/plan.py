"""From axes to cases: the cells of a sweep in the order they are measured, and why some of them are impossible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, product

from repshift_cli.records import (
    METHODS_WITHOUT_PRUNING,
    WITHOUT_ATTENTION,
    Case,
    Facts,
    Keep,
    Offers,
    Option,
    Unbuildable,
    UsageError,
    Value,
    keep_text,
    protection,
    tokens_along,
)
from repshift_cli.registry import Part
from repshift_cli.sweep.axes import Axes

FactsOf = Callable[[str, int | None, int | None, int | None], Facts]
"""(model, image size or None, frames or None, tokens of a sequence or None) -> what planning must know of it."""


Methods = Mapping[str, Mapping[str, Option]]
"""Reduction methods with the options that each takes, by name."""


@dataclass(frozen=True)
class Backend:
    """An attention back end as planning sees it: what it accepts, and why it is missing on this device."""

    offers: Offers | None
    missing: str | None = None


@dataclass(frozen=True)
class Traits:
    """A reduction method as planning sees it: the literals `TRAITS` and `APPENDS` of its file."""

    needs: tuple[str, ...] = ()
    appends: int = 0


def traits_of(method: Part) -> Traits:
    """What its file states of it."""
    return Traits(tuple(method.constants.get("TRAITS", ())), int(method.constants.get("APPENDS", 0)))


@dataclass(frozen=True)
class Planned:
    """One case with its token counts, or with the reason why it cannot be."""

    case: Case
    tokens: tuple[int, ...] = ()
    refused: str | None = None
    failed: bool = False
    """Whether the model's own code failed, instead of being refused."""


def expand(
    axes: Axes,
    device: str,
    facts_of: FactsOf,
    backends: Mapping[str, Backend],
    methods: Methods,
    traits: Mapping[str, Traits] | None = None,
) -> tuple[Planned, ...]:
    """Every cell of the sweep, unpruned variants of a group first, then schedule by schedule.

    `axes.variant` must name keys of `backends` and `methods`; of `traits` what is left out has none. UsageError for
    what no cell can have: a layer beyond a model's depth, a batch or data beside the user's own inputs. A model that is
    refused, or that cannot be built, is one such case where others are not.
    """
    planned: list[Planned] = []
    refusals: list[UsageError] = []
    sizes = (axes.image_size or (None,), axes.frames or (None,), axes.tokens or (None,))
    models = list(product(axes.model, *sizes))
    for model, size, frames, length in models:
        try:
            facts = facts_of(model, size, frames, length)
        except UsageError as refusal:
            refusals.append(refusal)
            sketch = Facts(0, 0, 0, image_size=size, frames=frames, length=length, weights=axes.weights or "random")
            base = next(_bases(axes, model, sketch, device))
            case = _with(base, attention=_split(axes.variant[0])[0])
            planned.append(Planned(case, refused=str(refusal), failed=isinstance(refusal, Unbuildable)))
            continue
        _check_layers(axes, model, facts)
        _check_removal(axes, model, facts)
        facts = _protecting(axes, model, facts)
        for base in _bases(axes, model, facts, device):
            planned += [
                _judged(case, facts, backends, (traits or {}).get(case.pruning, Traits()))
                for case in _cells(axes, base, facts, backends, methods)
            ]
    if len(refusals) == len(models):
        raise refusals[0]
    return tuple(planned)


def _bases(axes: Axes, model: str, facts: Facts, device: str) -> Iterator[Case]:
    """The settings of a model, with no variant yet."""
    for batch, dtype in product(axes.batch or (facts.batch or 1,), axes.dtype or (default_dtype(device),)):
        yield Case(
            model=model,
            input=axes.data or ("own" if facts.weights == "own" else "random"),
            weights=facts.weights,
            image_size=facts.image_size,
            frames=facts.frames,
            batch=batch,
            dtype=dtype,
            device=device,
            attention="",
            seed=axes.seed,
            protect=axes.protect,
            length=facts.length,
        )


def most_cells(axes: Axes, methods: Methods) -> int:
    """How many cells the sweep has at most, counted without making any: what repeats or does not apply counts too."""
    executions = 1 + axes.cuda_graph + axes.compile
    given = dict(axes.options)
    schedules = len(axes.remove or axes.keep) * max(1, len(axes.layers)) * max(1, len(axes.removal))
    cells = 0
    for _, method in map(_split, axes.variant):
        ways = 1 if method is None else schedules
        for name in methods.get(method or "", ()):
            ways *= max(1, len(given.get(name, ())))
        cells += ways * executions
    for values in (axes.model, axes.image_size, axes.frames, axes.tokens, axes.batch, axes.dtype):
        cells *= max(1, len(values))
    return cells


def comparisons(planned: Sequence[Planned]) -> list[list[Planned]]:
    """What is measured together, interleaved: for each schedule the pruned cases with the unpruned ones of the group.

    The unpruned ones come back in every comparison of their group, as its reference; a refused case belongs to none.
    """
    found = []
    possible = [p for p in planned if p.refused is None]
    for _, group in groupby(possible, key=lambda p: p.case.group):
        cases = list(group)
        plain = [p for p in cases if p.case.pruning == METHODS_WITHOUT_PRUNING]
        schedules: dict[tuple[object, ...], list[Planned]] = {}
        for p in cases:
            if p.case.pruning != METHODS_WITHOUT_PRUNING:
                schedules.setdefault((p.case.keep, p.case.layers, p.case.remove), []).append(p)
        found += [plain + pruned for pruned in schedules.values()] or [plain]
    return found


def default_dtype(device: str) -> str:
    """bf16 on CUDA, fp32 on a CPU."""
    return "bf16" if device.startswith("cuda") else "fp32"


def default_layers(depth: int) -> tuple[int, ...]:
    """One layer at a quarter of the depth."""
    return (max(1, depth // 4),)


def _check_layers(axes: Axes, model: str, facts: Facts) -> None:
    beyond = [n for schedule in axes.layers for n in schedule if n > facts.depth]
    if beyond:
        raise UsageError(f"--layers {beyond[0]} is beyond the depth of {model}, which has {facts.depth} blocks")


def _check_removal(axes: Axes, model: str, facts: Facts) -> None:
    if axes.removal and not facts.removals and len(axes.model) == 1:
        raise UsageError(f"--removal applies to grids (a CNN's), and {model} has none")


def _protecting(axes: Axes, model: str, facts: Facts) -> Facts:
    """The facts with what --protect takes away from the tokens that may go."""
    more = sum(protection(axes.protect))
    if more and facts.removals:
        raise UsageError(f"--protect does not apply to {model}: a grid has no first and no last tokens")
    if more and not facts.row:
        raise UsageError(f"--protect does not apply to {model}: its tokens are not a row from first to last")
    if more >= facts.tokens:
        raise UsageError(f"--protect leaves none of the {facts.tokens} tokens of {model} to drop")
    return replace(facts, tokens=facts.tokens - more, prefix=facts.prefix + more)


def _cells(axes: Axes, base: Case, facts: Facts, backends: Mapping[str, Backend], methods: Methods) -> Iterator[Case]:
    executions = ("eager", *["graph"] * axes.cuda_graph, *["compile"] * axes.compile)
    variants = _variants(axes, facts)
    for (attention, method), execution in product(variants, executions):
        if method is None:
            yield _with(base, attention=attention, execution=execution)
    seen = set()
    for keep, remove, layers in _cuts(axes, facts):
        for (attention, method), execution in product(variants, executions):
            if method is None:
                continue
            for options, removal in product(_options(axes, facts, methods[method], layers), _removals(axes, facts)):
                how = {"keep": keep, "remove": remove, "layers": layers, "options": options, "removal": removal}
                case = _with(base, attention=attention, execution=execution, pruning=method, **how)
                case = _proportional(case, backends[attention])
                if case not in seen:
                    seen.add(case)
                    yield case


def _cuts(axes: Axes, facts: Facts) -> Iterator[tuple[Keep, str | None, tuple[int, ...]]]:
    """The shares that stay, or the numbers that leave, with the layers; a list of shares where there are as many."""
    schedules = list(_schedules(axes, facts))
    for remove in axes.remove:
        yield from ((1.0, remove, layers) for layers in schedules)
    for keep in () if axes.remove else axes.keep:
        fitting = [layers for layers in schedules if not isinstance(keep, tuple) or len(keep) == len(layers)]
        if not fitting:
            raise _unpaired("keep", keep_text(keep), schedules[0])
        same = keep[0] if isinstance(keep, tuple) and len(set(keep)) == 1 else keep
        yield from ((same, None, layers) for layers in fitting)


def _unpaired(name: str, value: str, layers: Sequence[int]) -> UsageError:
    count = value.count(",") + 1
    return UsageError(
        f"--{name} {value} with --per-layer is for {count} layers, and --layers {','.join(map(str, layers))} has "
        f"{len(layers)}; give one value for each layer, or one for all"
    )


def _schedules(axes: Axes, facts: Facts) -> Iterator[tuple[int, ...]]:
    """The schedules asked for, an empty one being all blocks."""
    for layers in axes.layers or (default_layers(facts.depth),):
        yield layers or tuple(range(1, facts.depth + 1))


def _takes_bias(case: Case, backend: Backend) -> bool:
    return backend.offers is None or case.device.partition(":")[0] in backend.offers.mask


def _proportional(case: Case, backend: Backend) -> Case:
    """With proportional attention on or off, where it is `auto`: the row says which."""
    if case.option("proportional") != "auto":
        return case
    chosen = "on" if _takes_bias(case, backend) else "off"
    return case.with_options(**{**dict(case.options), "proportional": chosen})


def _split(variant: str) -> tuple[str, str | None]:
    attention, _, method = variant.partition("+")
    return attention, method or None


def _variants(axes: Axes, facts: Facts) -> list[tuple[str, str | None]]:
    """The pairs of back end and method; where there is no attention, all back ends are the same one: none."""
    pairs = [_split(v) for v in axes.variant]
    return pairs if facts.attention else list(dict.fromkeys((WITHOUT_ATTENTION, method) for _, method in pairs))


def _removals(axes: Axes, facts: Facts) -> Sequence[str | None]:
    return (axes.removal or facts.removals[:1]) if facts.removals else (None,)


def _options(
    axes: Axes, facts: Facts, taken: Mapping[str, Option], layers: tuple[int, ...]
) -> Iterator[tuple[tuple[str, Value], ...]]:
    """The combinations of the options that a method takes, each without those that do not apply to it."""
    given = {name: _fitting(name, values, layers) if axes.per_layer else values for name, values in axes.options}
    default = {name: facts.operations[0] if name == "operation" else option.default for name, option in taken.items()}
    for values in product(*(given.get(name) or (default[name],) for name in taken)):
        chosen = dict(zip(taken, values, strict=True))
        idle = {name for name, option in taken.items() if set(option.unless) & set(chosen.items())}
        yield tuple((name, v) for name, v in chosen.items() if v is not None and name not in idle)


def _fitting(name: str, values: tuple[Value, ...], layers: tuple[int, ...]) -> tuple[Value, ...]:
    """Those of an option's values that name one for each of these layers, or one for all; alike at all is one."""
    parts = {v: v.split(",") if isinstance(v, str) else [v] for v in values}
    found = [own[0] if len(set(own)) == 1 else v for v, own in parts.items() if len(own) in (1, len(layers))]
    if not found:
        raise _unpaired(name, str(values[0]), layers)
    return tuple(dict.fromkeys(found))


def _with(base: Case, **changes: object) -> Case:
    return Case(**{**vars(base), **changes})


def _judged(case: Case, facts: Facts, backends: Mapping[str, Backend], traits: Traits) -> Planned:
    try:
        tokens = tokens_along(facts, case.keep, case.layers, case.remove, traits.appends)
    except UsageError as error:
        return Planned(case, refused=str(error))
    backend = backends[case.attention]
    return Planned(case, tokens, refused=_refusal(case, facts, backend) or _unfit(case, facts, backend, traits, tokens))


def _unfit(case: Case, facts: Facts, backend: Backend, traits: Traits, tokens: Sequence[int]) -> str | None:
    """Why the reduction method cannot reduce this model's tokens, or None."""
    name, model, needed = case.pruning, case.model, traits.needs
    if case.remove is not None and facts.removals:
        return f"--remove counts tokens of a row, and those of {model} are a grid; use --keep"
    if case.option("proportional") == "on" and not _takes_bias(case, backend):
        return f"{case.attention} takes no bias on the scores, which proportional attention is; use --proportional auto"
    if needed and facts.removals:
        return f"{name} reduces tokens of a row, and those of {model} are a grid"
    if "attention" in needed and not facts.attention and backend.offers is not None:
        return f"{name} reads attention's queries and keys, and {model} has no attention to choose"
    if "attention" in needed and backend.offers is not None and backend.offers.library:
        return f"{name} reads attention's queries and keys, which its library's own does not show; use vanilla"
    if "class token" in needed and (facts.causal or facts.prefix <= sum(protection(case.protect))):
        return f"{name} reads the class token's row, and {model} has none; column-attention needs none"
    if "last token" in needed and not facts.causal:
        return f"{name} reads the last token's row, and only in a causal model does that one see all; use cls-attention"
    if {"merges", "merges any"} & set(needed) or traits.appends:
        if facts.causal:
            return f"{name} merges or appends tokens, which changes their order, and {model} is causal"
        if not facts.row:
            return f"{name} merges or appends tokens, and those of {model} have places of their own in each sample"
    if "merges" in needed:
        for before, after in pairwise(tokens):
            free = before - facts.prefix
            if before - after > free // 2:
                return f"{name} merges at most half of the tokens of a layer: {before - after} of {free} are too many"
    return None


def _refusal(case: Case, facts: Facts, backend: Backend) -> str | None:
    """Why this machine or this back end cannot run the case, or None."""
    kind = case.device.partition(":")[0]
    operation = case.option("operation")
    for one in () if operation is None else operation.split(","):
        if one not in facts.operations:
            return f"{case.model} lets the shift of {', '.join(facts.operations)} be scored, not of {one}"
    if backend.missing is not None:
        return backend.missing
    if case.execution == "graph" and kind != "cuda":
        return "CUDA graphs exist on CUDA only"
    offers = backend.offers
    if offers is None:
        return None
    if offers.library and not facts.eager:
        return f"{case.model} has no attention of its library's own for {case.attention}; use vanilla"
    if case.dtype not in offers.dtypes.get(kind, ()):
        taken = ", ".join(offers.dtypes.get(kind, ())) or "nothing"
        return f"{case.attention} takes {taken} on {kind}, not {case.dtype}"
    if facts.mask is not None and kind not in offers.mask:
        return f"{case.attention} takes no attention mask on {kind}, and {case.model} needs one for {facts.mask}"
    if facts.head_dim is not None:
        if offers.max_head_dim is not None and facts.head_dim > offers.max_head_dim:
            return f"{case.attention} takes head dims up to {offers.max_head_dim}, {case.model} has {facts.head_dim}"
        if facts.head_dim % offers.head_dim_multiple:
            return f"{case.attention} takes head dims in steps of {offers.head_dim_multiple}, not {facts.head_dim}"
    return None
