"""Self-repair: what taking a block's branch away does by itself, and what is left of that when later blocks answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from repshift_cli.inspection import Look
from repshift_cli.inspection.base.arrays import axis, blocks, quantity
from repshift_cli.inspection.base.blocks import visiting
from repshift_cli.inspection.base.effects import read_out
from repshift_cli.inspection.base.ranks import mean
from repshift_cli.records import Site
from repshift_cli.records.inspection import Answer, Quantity
from repshift_cli.reduction.engine.seen import Seen
from repshift_cli.reduction.engine.state import tokens_of

RANK = 4
BRANCHES = ("attention", "mlp", "update")
CLEAR = 0.02
"""Of the untouched reading, the share below which a direct effect is too small to be repaired."""
NOT_ADDED = "the block's output is not the sum of its input and its branches (a norm behind the sum?)"


def unanswerable(look: Look) -> str | None:
    """A block without both branches has nothing that could be taken away alone."""
    sites = look.subject.sites
    if look.subject.grid or any(site.attention is None or site.mlp is None for site in sites):
        return "its blocks have no attention and MLP beside each other"
    return None


def answer(look: Look) -> Answer:
    """Per input: an untouched forward, then for each branch one without it and one that lacks it at the end only."""
    found: list[list[list[tuple[float, float | None]]]] = []
    for number, inputs in enumerate(look.inputs):
        with look.active():
            found.append(_effects(look, inputs, number))
    quantities = list(_quantities(look, found))
    reading = tuple(_read(quantities))
    return Answer(
        "repair", "Self-repair", settings={"inputs": len(found)}, quantities=tuple(quantities), reading=reading
    )


def projected(output: Tensor, reference: Tensor, classifies: bool) -> float:
    """The reading of which effects are shares, 1 for the untouched output: (1, K), (1, K).

    Of a classifier the logit of the class that it ranked highest, over the mean of all logits (McGrath et al. 2023,
    arXiv 2307.15771); else the part of the pooled output along the untouched one.
    """
    if classifies:
        output, reference = (t - t.mean(-1, keepdim=True) for t in (output, reference))
        top = reference.argmax(-1)
        return float(output[0, top] / reference[0, top])
    return float((output * reference).sum() / (reference * reference).sum())


# --- one input --------------------------------------------------------------------------------------------------------


def _effects(look: Look, inputs: Any, number: int) -> list[list[tuple[float, float | None]]]:
    """By block and branch the total and, where branches add up, the direct effect: shares of the untouched reading."""
    subject, seen = look.subject, {}

    def visit(layer: int, block: Seen) -> None:
        seen[layer] = Seen({name: block[name] for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")})

    with visiting(subject, visit):
        output = look.run(inputs)
    reference, classifies = read_out(subject, output), subject.logits(output) is not None
    last = subject.sites[-1]

    def lost() -> float:
        return 1 - projected(read_out(subject, look.run(inputs)), reference, classifies)

    rows = []
    for layer, site in enumerate(subject.sites, start=1):
        look.tell((number + layer / len(subject.sites)) / len(look.inputs))
        row: list[tuple[float, float | None]] = []
        for branch in BRANCHES:
            with _silent(site, branch):
                total = lost()
            direct = None
            if all(map(added, seen.values())):
                with _ending(last, seen[len(seen)]["resid_post"] - _update(seen[layer], branch)):
                    direct = lost()
            row.append((total, direct))
        rows.append(row)
    return rows


def added(seen: Seen) -> bool:
    """Whether x^ = x + SA + MLP holds, to a thousandth: what one branch put in can be taken out of the sum."""
    rest = seen["resid_post"] - seen["resid_pre"] - seen["attn_out"] - seen["mlp_out"]
    return bool(rest.norm() <= 1e-3 * seen["resid_post"].norm())


def _update(seen: Seen, branch: str) -> Tensor:
    parts = {"attention": ("attn_out",), "mlp": ("mlp_out",), "update": ("attn_out", "mlp_out")}[branch]
    return sum((seen[name] for name in parts), torch.zeros_like(seen["resid_post"]))


@contextmanager
def _silent(site: Site, branch: str) -> Iterator[None]:
    """Within it the branch of that block puts out zero; `update` is both, so that x^ = x."""
    with ExitStack() as stack:
        for name, module in (("attention", site.attention), ("mlp", site.mlp)):
            if branch in (name, "update"):
                stack.callback(module.register_forward_hook(_zero).remove)
        yield


def _zero(module: Any, args: Any, output: Any) -> Any:
    return _replaced(output, torch.zeros_like(tokens_of(output)))


@contextmanager
def _ending(site: Site, state: Tensor) -> Iterator[None]:
    """Within it the block puts out `state` (B, N, C), whatever it is given."""
    handle = site.block.register_forward_hook(lambda module, args, output: _replaced(output, state))
    try:
        yield
    finally:
        handle.remove()


def _replaced(output: Any, state: Tensor) -> Any:
    hidden = tokens_of(output)
    return state if isinstance(output, Tensor) else tuple(state if v is hidden else v for v in output)


# --- all inputs -------------------------------------------------------------------------------------------------------


def repaired(total: float | None, direct: float | None) -> float | None:
    """1 - total / direct: 0 nothing is made up for, 1 all, below 0 it gets worse; None where there is no clear loss."""
    if total is None or direct is None or direct < CLEAR:
        return None
    return 1 - total / direct


def _quantities(look: Look, found: Sequence[Sequence[Sequence[tuple[float, float | None]]]]) -> Iterator[Quantity]:
    depth, branches = blocks(len(look.subject.sites)), axis("branch", BRANCHES)
    layers, kinds = range(len(look.subject.sites)), range(len(BRANCHES))
    total, direct = ([[mean([rows[n][k][i] for rows in found]) for k in kinds] for n in layers] for i in (0, 1))
    yield quantity(
        "direct",
        "direct",
        "share of the untouched reading (the highest logit over the mean; else the pooled output along itself) lost "
        "where the branch is taken out of the last block's sum alone, so that no later block sees that it is gone.",
        [depth, branches],
        direct,
        missing=NOT_ADDED,
    )
    yield quantity(
        "total",
        "total",
        "the same where the branch puts out zero and all later blocks are given what is left.",
        [depth, branches],
        total,
    )
    yield quantity(
        "repaired",
        "repaired",
        f"1 - total / direct, where the direct loss is at least {CLEAR:.0%}: what later blocks make up for.",
        [depth, branches],
        [[repaired(total[n][k], direct[n][k]) for k in kinds] for n in layers],
        missing="no clear direct loss",
        view="map",
        high=1,
    )


def _read(quantities: Sequence[Quantity]) -> Iterator[str]:
    by_name = {q.name: dict(q.items()) for q in quantities}
    count = len(quantities[0].axes[0].ticks)
    for branch in BRANCHES:
        clear = [place for place, v in by_name["repaired"].items() if place[1] == branch and v is not None]
        if clear:
            total, direct = (sum(by_name[name][place] or 0 for place in clear) for name in ("total", "direct"))
            made_up = f"{1 - total / direct:.0%}" if total < direct else "nothing"
            yield (
                f"{branch}: {direct:.2f} of the reading is lost directly, by {len(clear)} of {count} blocks, and "
                f"{total:.2f} where later blocks answer: {made_up} is made up for"
            )
