"""Two profiles against each other: what pruning costs and saves block by block, from where it pays, what changed.

Pure arithmetic on breakdowns; times are the device's where there is one, the host's otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repshift_cli.profiling.annotations import CONVOLUTION, PARTS, SELECTION
from repshift_cli.records import METHODS_WITHOUT_PRUNING, Case, Keep, keeps_of, kept
from repshift_cli.records.profile import OTHER, WAIT, Breakdown, total

DEVICE_BOUND, HOST_BOUND = 0.10, 0.25
"""Below the first share of idle time the device sets the pace, above the second the host does."""
PART_ORDER = (*PARTS, OTHER, WAIT)
FINEST_KEEP = 100
MOST_DRIFT = 0.15
"""Two variants whose equal blocks differ by a larger share than this were not profiled under equal conditions."""


def reference_of(own: Breakdown, others: Sequence[Breakdown]) -> Breakdown | None:
    """The unpruned variant with the same attention and everything else equal, that a pruned one is held against."""
    if own.case is None or own.case.pruning == METHODS_WITHOUT_PRUNING or own.status != "ok":
        return None
    return next((o for o in others if o.case and o.status == "ok" and _is_reference(o.case, own.case)), None)


def _is_reference(other: Case, case: Case) -> bool:
    same = (other.group, other.attention, other.execution) == (case.group, case.attention, case.execution)
    return same and other.pruning == METHODS_WITHOUT_PRUNING


def pairs(breakdowns: Sequence[Breakdown]) -> list[tuple[Breakdown, Breakdown]]:
    """What `--diff` compares: each pruned variant with its reference, each other one with the variant before it."""
    done = [b for b in breakdowns if b.status == "ok"]
    found = []
    for i, own in enumerate(done):
        before = reference_of(own, done) or (done[i - 1] if i else None)
        if before is not None:
            found.append((before, own))
    return found


# --- parts and blocks -------------------------------------------------------------------------------------------------


def parts_of(b: Breakdown) -> list[str]:
    """The parts that occur, in the order of the field: attention first, `other` and `wait` last."""
    found = {p.part for p in b.parts}
    return [p for p in PART_ORDER if p in found] + sorted(found - set(PART_ORDER))


def layers_of(b: Breakdown) -> list[int]:
    """The blocks that occur."""
    return sorted({p.layer for p in b.parts if p.layer is not None})


def time(b: Breakdown, part: str | None = None, layer: int | None = None, on_device: bool | None = None) -> float:
    """Milliseconds per step of one part (None: all), of one block (None: everywhere)."""
    chosen = [p for p in b.parts if part in (None, p.part) and layer in (None, p.layer)]
    return total(chosen, b.on_device if on_device is None else on_device)


def outside(b: Breakdown) -> float:
    """Milliseconds per step outside the blocks."""
    return total([p for p in b.parts if p.layer is None], b.on_device)


def selection(b: Breakdown, layer: int | None = None) -> float:
    """Milliseconds per step that scoring, choosing and cutting take, of one block or of all."""
    return sum(time(b, part, layer) for part in SELECTION)


def in_stages(b: Breakdown) -> bool:
    """Whether the blocks are a CNN's stages: each changes the grid by itself, so `tokens` does not tell what enters."""
    return any(p.part == CONVOLUTION for p in b.parts)


def tokens_in(b: Breakdown, layer: int) -> int | None:
    """The tokens that enter a block, prefix included; None where that is not known."""
    if b.case is None or not b.tokens or in_stages(b):
        return None
    return b.tokens[min(sum(cut < layer for cut in b.case.layers), len(b.tokens) - 1)]


# --- does pruning pay? ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerBalance:
    """One block of a pruned variant: what it saves against the unpruned one without counting the selection, and what
    is won so far, all selection until then paid (milliseconds per step)."""

    layer: int
    saved: float
    won: float


def balance(own: Breakdown, reference: Breakdown) -> list[LayerBalance]:
    """Block by block, the selection's cost beside the time that it saves."""
    rows, won = [], 0.0
    for layer in layers_of(own):
        cost = selection(own, layer)
        saved = time(reference, layer=layer) - (time(own, layer=layer) - cost)
        won += saved - cost
        rows.append(LayerBalance(layer, saved, won))
    return rows


def drift(own: Breakdown, reference: Breakdown) -> float:
    """How much longer the blocks up to the first cut took than in the reference, as a share: both run them alike."""
    assert own.case is not None
    rows = [row for row in balance(own, reference) if row.layer <= own.case.layers[0]]
    alike = sum(time(reference, layer=row.layer) for row in rows)
    return -sum(row.saved for row in rows) / alike if alike else 0.0


def pays_from(own: Breakdown, reference: Breakdown) -> int | None:
    """The first block from which on everything won exceeds all selection; None where that never comes."""
    assert own.case is not None
    answer = None
    for row in balance(own, reference):
        if row.layer <= own.case.layers[0]:
            continue
        answer = None if row.won <= 0 else answer or row.layer
    return answer


def break_even_keep(own: Breakdown, reference: Breakdown) -> float | None:
    """The highest keep ratio at which the same layers would still win, in hundredths; None where none would.

    None too for a CNN's stages, whose time does not follow from a token count that all share.

    An estimate: the selection's cost is taken as it is, and a block's time as linear in its tokens, with the slope that
    the two profiles show behind the first cut.
    """
    case = own.case
    assert case is not None
    if in_stages(own) or not own.tokens:
        return None
    behind = [row for row in balance(own, reference) if row.layer > case.layers[0]]
    dropped = _dropped(case, own, case.keep)
    saved = sum(row.saved for row in behind)
    if saved <= 0 or dropped <= 0:
        return None
    needed = selection(own) * dropped / saved
    ratios = (percent / FINEST_KEEP for percent in range(FINEST_KEEP - 1, 0, -1))
    return next((keep for keep in ratios if _dropped(case, own, keep) > needed), None)


def _dropped(case: Case, own: Breakdown, keep: Keep) -> int:
    """Tokens saved, summed over the blocks behind the first cut, if the cuts kept this share.

    The prefix is not told apart here: it is one token or none, of hundreds.
    """
    tokens, saved = own.tokens[0], 0
    keeps = dict(zip(case.layers, keeps_of(keep, case.layers), strict=True))
    for layer in layers_of(own):
        saved += own.tokens[0] - tokens
        if layer in keeps:
            tokens = kept(tokens, keeps[layer])
    return saved


# --- what sets the pace, what changed ---------------------------------------------------------------------------------


def bound(b: Breakdown) -> str:
    """Whether host or device sets the pace, in words; the empty text on a CPU, where they are one."""
    idle = b.idle_share
    if idle is None:
        return ""
    said = f"the device idles {idle:.0%} of the step"
    if idle < DEVICE_BOUND:
        return f"device-bound: {said}"
    if idle > HOST_BOUND:
        return f"host-bound: {said}, waiting for the host to launch its work"
    return f"neither device-bound nor host-bound alone: {said}"


@dataclass(frozen=True)
class Change:
    """One kernel or operator in two variants: `new`, `gone`, `more` or `less` time, or `same`."""

    name: str
    what: str
    calls: tuple[float, float]
    ms: tuple[float, float]

    @property
    def difference(self) -> float:
        """Milliseconds per step that the second takes more."""
        return self.ms[1] - self.ms[0]


def changes(before: Breakdown, after: Breakdown) -> list[Change]:
    """Every kernel (every operator where there are no kernels) of either, the largest change first."""
    a, b = _timed(before), _timed(after)
    found = []
    for name in {**a, **b}:
        (calls_a, ms_a), (calls_b, ms_b) = a.get(name, (0.0, 0.0)), b.get(name, (0.0, 0.0))
        what = "new" if name not in a else "gone" if name not in b else "same"
        if what == "same" and ms_a != ms_b:
            what = "more" if ms_b > ms_a else "less"
        found.append(Change(name, what, (calls_a, calls_b), (ms_a, ms_b)))
    return sorted(found, key=lambda c: (-abs(c.difference), c.name))


def _timed(b: Breakdown) -> dict[str, tuple[float, float]]:
    if b.kernels:
        return {k.name: (k.calls, k.ms) for k in b.kernels}
    return {o.name: (o.calls, o.host_ms) for o in b.ops}
