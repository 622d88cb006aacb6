"""What a profile has to show: the step by part, variant beside variant, and each variant block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from repshift_cli.profiling import break_even
from repshift_cli.records.profile import Breakdown, ProfileRun
from repshift_cli.renderers.figures.shapes import Axis, Curve, Figure, Plane, Stack, Stacks

MOST_VARIANTS = 24
IDLE = "idle"
OUTSIDE = "out"


def figures(run: ProfileRun) -> Iterator[Figure]:
    """Time by part, by block, by kernel or operator where there are no parts, and the tokens along the depth."""
    done = [b for b in run.breakdowns if b.status == "ok"]
    timed = [b for b in done if b.parts]
    if timed:
        place = "on the device" if timed[0].on_device else "on the host"
        caption = f"milliseconds of a step {place}, part by part; bars of one attention stand before and after pruning"
        stacks = tuple(Stack(b.name, tuple(_parts(b))) for b in timed[:MOST_VARIANTS])
        yield Stacks("Time by part", caption, Axis("time", "ms"), stacks)
    yield from _blocks(timed)
    if bare := [b for b in done if not b.parts]:
        yield from _names(bare)
    yield from _tokens(timed)


def _parts(b: Breakdown) -> Iterator[tuple[str, float]]:
    for part in break_even.parts_of(b):
        if spent := break_even.time(b, part):
            yield part, spent
    if b.on_device and (idle := max(0.0, b.step - (b.busy_ms or 0.0))):
        yield IDLE, idle


def _blocks(timed: Sequence[Breakdown]) -> Iterator[Stacks]:
    for b in timed[:MOST_VARIANTS]:
        layers = break_even.layers_of(b)
        if layers:
            stacks = [_stack(b, layer) for layer in layers]
            rest = tuple((p, t) for p in break_even.parts_of(b) if (t := _outside(b, p)) > 0)
            yield Stacks(
                f"Time by block: {b.name}",
                "milliseconds of each block, part by part; out: what lies outside the blocks",
                Axis("block", "ms"),
                (*stacks, Stack(OUTSIDE, rest)),
                upright=True,
            )


def _stack(b: Breakdown, layer: int) -> Stack:
    return Stack(str(layer), tuple((p, t) for p in break_even.parts_of(b) if (t := break_even.time(b, p, layer))))


def _outside(b: Breakdown, part: str) -> float:
    return break_even.time(b, part) - sum(break_even.time(b, part, n) for n in break_even.layers_of(b))


def _names(bare: Sequence[Breakdown]) -> Iterator[Stacks]:
    """The kernels, or the operators, that take most: of a trace without parts."""
    for b in bare[:MOST_VARIANTS]:
        times = [(k.name, k.ms) for k in b.kernels] or [(o.name, o.host_ms) for o in b.ops]
        largest = sorted((t for t in times if t[1] > 0), key=lambda t: -t[1])[:20]
        if largest:
            stacks = tuple(Stack(name, (("ms", ms),)) for name, ms in largest)
            what = "kernel" if b.kernels else "operator"
            yield Stacks(f"Time by {what}: {b.name}", f"the {len(stacks)} that take most", Axis("time", "ms"), stacks)


def _tokens(timed: Sequence[Breakdown]) -> Iterator[Plane]:
    curves = []
    for b in timed[:MOST_VARIANTS]:
        known = [(float(n), float(t)) for n in break_even.layers_of(b) if (t := break_even.tokens_in(b, n)) is not None]
        if len(known) > 1:
            curves.append(Curve(b.name, tuple(known), b.name, steps=True))
    if curves:
        caption = "tokens that enter each block, protected ones included"
        yield Plane("Tokens along the depth", caption, Axis("block", whole=True), Axis("tokens"), curves=tuple(curves))
