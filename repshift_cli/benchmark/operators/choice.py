"""Which operators and engines a device has, and why a cell cannot be: the device, the dtype, the shape, its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

from repshift_cli import registry
from repshift_cli.machine.memory import total_bytes
from repshift_cli.operators.base.spec import Cost, Engine, Shape, Spec
from repshift_cli.records import Case, UsageError
from repshift_cli.sweep.operators import DECODE_REFERENCE, REFERENCE, Offered

ITEM = {"fp32": 4, "bf16": 2, "fp16": 2}
SHARE_OF_MEMORY = 0.9
PLAIN = "plain"
SHARE_READY = 0.4
"""The share of the device's memory that the graphs of a comparison's backward passes may take between their turns."""
MOST_GRAPHS = 2
"""Of one operator at once: verification runs a forward and its gradients beside the graph that is there."""


def offered(names: Sequence[str], device: str) -> tuple[Offered, ...]:
    """The operators asked for, or all; engines beside the plain form where they are named or run unasked here.

    UsageError for a name that there is not. The references are always among them.
    """
    asked = [_named(name) for name in names] or [(part, None) for part in registry.parts("operators").values()]
    known = {part.name for part, _ in asked}
    for name in (REFERENCE, DECODE_REFERENCE):
        asked += [(registry.find("operators", name), PLAIN)] if name not in known else []
    found = {o.name: o for part, engine in asked for o in _of_part(part, engine, device, bool(names))}
    return tuple(found.values())


def _named(text: str) -> tuple[registry.Part, str | None]:
    name, colon, engine = text.partition(":")
    part = registry.find("operators", name)
    engines = registry.load(part).ENGINES
    if colon and engine not in engines:
        raise UsageError(f"{part.name} has no engine {engine!r}; it has {', '.join(engines)}")
    return part, engine or None


def _of_part(part: registry.Part, engine: str | None, device: str, asked: bool) -> Iterator[Offered]:
    module, kind = registry.load(part), device.partition(":")[0]
    for name, one in module.ENGINES.items():
        there = one.unavailable(device) is None
        unasked = name == PLAIN or (kind in one.unasked and there)
        if name == engine or (engine is None and unasked and (there or asked)):
            variant = part.name if name == PLAIN else f"{part.name}:{name}"
            yield Offered(variant, module.CLASS, module.CAUSAL, partial(refusal, module, one))


def parted(case: Case) -> tuple[Any, Engine]:
    """The operator's module and the engine of a case."""
    name, _, engine = case.attention.partition(":")
    module = registry.load(registry.find("operators", name))
    return module, module.ENGINES[engine or PLAIN]


def shape_of(case: Case) -> Shape:
    """The sizes that a case names."""
    heads, n = int(case.option("heads")), int(case.length or 0)
    queries = 1 if case.option("decode") else n
    kv_heads = int(case.option("kv_heads") or heads)
    return Shape(case.batch, heads, kv_heads, n, int(case.option("head_dim")), queries)


def spec_of(case: Case) -> Spec:
    """The settings that a case names."""
    causal = bool(case.option("causal") or case.option("decode"))
    return Spec(causal=causal, window=int(case.option("window")), seed=case.seed)


def cost_of(case: Case, shape: Shape | None = None) -> Cost:
    """What the case costs by formula."""
    module, engine = parted(case)
    cost: Cost = (engine.cost or module.cost)(shape or shape_of(case), spec_of(case))
    return cost


def refusal(module: Any, engine: Engine, case: Case) -> str | None:
    """Why a case cannot be on this device, or None."""
    shape, spec = shape_of(case), spec_of(case)
    for reason in (
        engine.unavailable(case.device),
        _beyond_offers(engine, case, shape),
        module.refused(shape, spec),
        engine.refused(shape, spec),
        beyond_execution(engine, case),
    ):
        if reason is not None:
            return reason
    return _beyond_memory((engine.cost or module.cost)(shape, spec), case, shape)


def _beyond_offers(engine: Engine, case: Case, shape: Shape) -> str | None:
    kind, offers = case.device.partition(":")[0], engine.offers
    if case.dtype not in offers.dtypes.get(kind, ()):
        return f"takes {', '.join(offers.dtypes.get(kind, ())) or 'nothing'} on {kind}, not {case.dtype}"
    if offers.max_head_dim is not None and shape.head_dim > offers.max_head_dim:
        return f"takes head dims up to {offers.max_head_dim}, not {shape.head_dim}"
    if shape.head_dim % offers.head_dim_multiple:
        return f"takes head dims in steps of {offers.head_dim_multiple}, not {shape.head_dim}"
    return None


def beyond_execution(engine: Engine, case: Case) -> str | None:
    """Why the case cannot be carried out as a graph or backwards, or None."""
    kind = case.device.partition(":")[0]
    if case.execution == "graph" and kind != "cuda":
        return "CUDA graphs exist on CUDA only"
    if case.execution == "graph" and not engine.capturable:
        return "its work depends on the data, so no CUDA graph can hold it"
    if case.option("backward"):
        if kind not in engine.backward:
            return f"has no backward pass on {kind}"
        if case.execution != "eager":
            return "the backward pass is measured eagerly only"
    return None


def kept(case: Case) -> int:
    """Bytes that the case keeps between its turns, beside its inputs: the graph of the forward whose gradients are
    timed. At most what that forward writes is saved for them, and of what moves by formula half is written."""
    return cost_of(case).moved // 2 * ITEM[case.dtype] if case.option("backward") else 0


def not_held(cases: Sequence[Case]) -> frozenset[Case]:
    """Those of a comparison whose graphs cannot stay beside the others', the heaviest first: they are made anew for
    each turn, in which there must be room for the largest. What stays takes at most `SHARE_READY` of the memory."""
    graphs = sorted(((kept(c), c) for c in cases if c.option("backward")), key=lambda pair: pair[0])
    has = total_bytes(cases[0].device) if graphs else None
    if has is None:
        return frozenset()
    room = min(SHARE_READY * has, SHARE_OF_MEMORY * has - MOST_GRAPHS * graphs[-1][0])
    fits = sum(level <= room for level in accumulate(size for size, _ in graphs))
    return frozenset(case for _, case in graphs[fits:])


def _beyond_memory(cost: Cost, case: Case, shape: Shape) -> str | None:
    """What the operator's own turn holds at once, by formula, against the whole memory of the device."""
    has = total_bytes(case.device)
    if has is None:
        return None
    needs = (shape.given + cost.held) * ITEM[case.dtype] + MOST_GRAPHS * kept(case)
    if needs <= SHARE_OF_MEMORY * has:
        return None
    sizes = f"{case.batch} x {shape.heads} heads, {shape.tokens} tokens, {case.dtype}"
    return f"would hold {needs / 2**30:.0f} GiB at once ({sizes}), and the device has {has / 2**30:.0f} GiB"
