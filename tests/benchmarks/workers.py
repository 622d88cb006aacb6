"""Does a worker that lives long measure otherwise than a fresh one? The same comparison again and again in both.

    python tests/benchmarks/workers.py [PAIRS]

In turn, so that what the machine does meets both: one comparison in a worker started for it, one in a worker that goes
on. Prints the medians of each, how far apart they lie (half of the middle 50%, as a share of the median), their ratio.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import nullcontext
from typing import Any

from repshift_cli.benchmark import engine
from repshift_cli.benchmark.launchers import Terms, process
from repshift_cli.benchmark.runner import Settings
from repshift_cli.benchmark.tasks import Comparison, Station
from repshift_cli.sweep.axes import Axes


class Nobody:
    """An observer."""

    def phase(self, text: str) -> None: ...
    def update(self, word: Any) -> None: ...
    def at(self, case: Any) -> None: ...
    def next(self) -> None: ...


def main(pairs: int) -> None:
    long_lived = process.start(Terms())
    sweep = Axes(model=("vit_t",), image_size=(64,), device="cpu", variant=("flash",), batch=(4,))
    plan = engine.plan_sweep(sweep, long_lived, lambda _: nullcontext(Nobody()))
    cases = tuple((p.case, p.tokens) for p in plan.planned)
    task = Comparison(
        Station("cpu", threads=1), Settings(0.01, 5.0, rounds=15, passes=False), cases, frozenset(c for c, _ in cases)
    )
    found: dict[str, list[float]] = {"fresh": [], "long-lived": []}
    for _ in range(pairs):
        fresh = process.start(Terms())
        found["fresh"].append(latency(fresh, task))
        fresh.close()
        found["long-lived"].append(latency(long_lived, task))
    long_lived.close()
    for name, medians in found.items():
        low, middle, high = statistics.quantiles(medians, n=4)
        shown = " ".join(f"{ms:.2f}" for ms in medians)
        print(f"{name}: median {middle:.3f} ms, spread ±{(high - low) / 2 / middle:.1%} of {len(medians)}: {shown}")
    ratios = [a / b for a, b in zip(*found.values(), strict=True)]
    print(f"fresh / long-lived: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def latency(carrier: Any, task: Comparison) -> float:
    """The median of one comparison's only case, in milliseconds."""
    (event,) = engine.carry_out([task], carrier, lambda _: nullcontext(Nobody()))
    return statistics.median(event.value.measurement("latency").samples)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 12)
