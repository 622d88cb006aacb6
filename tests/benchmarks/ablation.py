"""What each fused kernel is worth, as the ratio to the oracle after each step: `python tests/benchmarks/ablation.py`.

The oracle keeps its first tokens by a plain slice: the least that any method can cost. Each line switches on one thing
more: plain torch for everything, the fused score, the fused select, the fused cut (with the residual add), the whole
forward as a CUDA graph. All of them and the oracle are timed in turn, in a new order every round; a graph is held
against the oracle's graph. On a CPU there is plain torch alone, without and with the add for kept rows only.

    python tests/benchmarks/ablation.py --model deit_s,deit_b,vit_l,umt_b --batch 1,32,256 --rounds 60
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from repshift_cli.analysis import stats
from repshift_cli.benchmark import builder, execution
from repshift_cli.kernels import paths
from repshift_cli.machine import device as devices
from repshift_cli.machine.describe import describe
from repshift_cli.records import Case, Step, kept
from repshift_cli.sweep.plan import default_layers

SCHEDULES = {"umt_b": (0.8, (1, 2, 3)), "deit_s": (0.8, (1, 4, 7)), "deit_b": (0.8, (1, 4, 7))}
"""The paper's; another model keeps 0.8 at a quarter of its depth."""


@dataclass(frozen=True)
class Rung:
    """One line of the table: the parts by Triton, whether kept rows alone are added, and whether it is a graph."""

    name: str
    fused: tuple[str, ...] = ()
    late: bool = False
    graph: bool = False


ON_CUDA = (
    Rung("plain torch"),
    Rung("+ fused score", ("score",)),
    Rung("+ fused select", ("score", "select")),
    Rung("+ fused cut", ("score", "select", "cut"), late=True),
    Rung("+ graph", ("score", "select", "cut"), late=True, graph=True),
)
ON_CPU = (Rung("plain torch"), Rung("+ kept rows added alone", late=True))


def main() -> None:
    """Print one table: a row per rung, a column per model and batch."""
    asked = _arguments()
    device = devices.choose_device("auto")
    rungs = ON_CUDA if device.startswith("cuda") else ON_CPU
    table = Table("repshift / oracle", title=f"{describe(device).device_name}, {asked.rounds} rounds")
    columns: list[list[str]] = []
    names = [rung.name for rung in rungs]
    found: list[dict[str, Any]] = []
    for model in asked.model.split(","):
        for batch in map(int, asked.batch.split(",")):
            table.add_column(f"{model}\nbatch {batch}", justify="right")
            columns.append(_column(model, batch, device, rungs, asked.rounds))
            found.append({"model": model, "batch": batch, "ratios": dict(zip(names, columns[-1], strict=True))})
            if asked.out:
                about = {"device": describe(device).device_name, "rounds": asked.rounds, "columns": found}
                asked.out.write_text(json.dumps(about, indent=1), encoding="utf-8")
    for i, rung in enumerate(rungs):
        table.add_row(rung.name, *(column[i] for column in columns))
    Console().print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_s", help="one or several, by commas")
    parser.add_argument("--batch", default="8")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the ratios as JSON too, after every column")
    return parser.parse_args()


def _column(model: str, batch: int, device: str, rungs: tuple[Rung, ...], rounds: int) -> list[str]:
    step_builder = builder.StepBuilder(device)
    shift, oracle = _cases(model, batch, device)
    subject = step_builder.subject(shift)
    limits = [builder.eager_step(oracle, subject)]
    if any(rung.graph for rung in rungs):
        limits.append(execution.graph(limits[0]))
    steps = [_step(rung, builder.eager_step(shift, subject)) for rung in rungs]
    times = _times([*limits, *steps], step_builder.parts.timer, rounds)
    found = []
    for rung, own in zip(rungs, times[len(limits) :], strict=True):
        ratio = stats.hodges_lehmann(stats.paired_ratios(own, times[rung.graph]))
        found.append(f"{ratio.value:.3f} ({ratio.low:.3f}–{ratio.high:.3f})" if ratio.low else f"{ratio.value:.3f}")
    return found


def _cases(model: str, batch: int, device: str) -> tuple[Case, Case]:
    facts = builder.facts_of(None, model, None, None)
    keep, layers = SCHEDULES.get(model, (0.8, default_layers(facts.depth)))
    dtype = "bf16" if device.startswith("cuda") else "fp32"
    base = Case(model, "random", "random", facts.image_size, facts.frames, batch, dtype, device, "flash")
    base = replace(base, keep=keep, layers=layers)
    assert kept(facts.tokens, keep) < facts.tokens
    shift = replace(base, pruning="repshift").with_options(operation="mlp", distance="l2", form="paper")
    return shift, replace(base, pruning="oracle")


def _step(rung: Rung, step: Step) -> Step:
    @contextmanager
    def active() -> Iterator[None]:
        rest = [part for part in paths.PARTS if part not in rung.fused]
        with ExitStack() as stack:
            stack.enter_context(paths.using("triton", *rung.fused) if rung.fused else nullcontext())
            stack.enter_context(paths.using("torch", *rest) if rest else nullcontext())
            stack.enter_context(
                mock.patch("repshift_cli.reduction.engine.fused_add.worth_adding_late", lambda *_: rung.late)
            )
            stack.enter_context(step.active())
            yield

    eager = replace(step, active=active)
    return execution.graph(eager) if rung.graph else eager


def _times(steps: list[Step], timer: Any, rounds: int) -> list[list[float]]:
    """Milliseconds of every step in every round, medians of a few forwards, in a new order each time."""
    times: list[list[float]] = [[] for _ in steps]
    order, places = random.Random(0), list(range(len(steps)))

    def once(forward: Callable[[], Any], count: int) -> float:
        timer.time(forward, 1)
        return statistics.median(timer.time(forward, count))

    for number in range(rounds + 1):
        order.shuffle(places)
        for place in places:
            with steps[place].active():
                milliseconds = once(steps[place].forward, 3)
            if number:
                times[place].append(milliseconds)
    return times


if __name__ == "__main__":
    main()
