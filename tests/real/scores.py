"""Compares candidates for a score of our own on real weights, on data that was not used to choose among them.

    python tests/real/scores.py REAL MODEL --split calibration --out CALIBRATION.json
    python tests/real/scores.py REAL MODEL --split test --choose CALIBRATION.json --out RESULT.json
    python tests/real/scores.py REAL MODEL --split test --skip N --confirm "merge greedy" "peaks place" --out FRESH.json

The third runs candidates as they are, chosen by nothing, on test samples behind the N that have been looked at. MODEL
is dinov2 (a linear probe on Fashion-MNIST), minilm (mails) or smollm2 (prose); REAL is the folder that prepare.py,
evaluation.py and smollm2.py have filled. Every candidate is run by the tool's own engine at the same numbers of tokens;
the blocks before the first cut are computed once for all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from candidates import DESTINATIONS, ORDERS, SHIFTS, Candidate, States, candidates, projected
from score_data import MODELS, Bench, Schedule
from torch import Tensor

from repshift_cli import registry
from repshift_cli.attention import vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.records import Case, Subject, call
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.seen import Seen
from repshift_cli.reduction.engine.state import tokens_of

SEEDS = 3
OWN = ("random", "stride", "repshift", "lowest", "norm", "tome", "cls_attention", "fastv", "divprune")
"""Methods of the tool that are run beside."""
OPTIONS = {"operation": "mlp", "distance": "l2", "form": "paper", "proportional": "on", "map": "rows"}
RANK, DRAWS = 16, 4
"""Directions of a calibrated map, and random projections of the output whose gradients make it."""


class Watch:
    """Sees the states of blocks, and the printed shift of each; where blocks are skipped, what was kept of them."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.states: dict[int, dict[str, Tensor]] = {}

    @contextmanager
    def looking(self, layers: Sequence[int]) -> Iterator[None]:
        handles = [handle for layer in layers for handle in self._hooks(layer)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, layer: int) -> Iterator[Any]:
        site, states = self._subject.sites[layer - 1], self.states.setdefault(layer, {})

        def given(name: str) -> Callable[..., None]:
            return lambda m, args, kwargs: states.__setitem__(name, tokens_of((*args, *kwargs.values())))

        def put_out(name: str) -> Callable[..., None]:
            return lambda m, args, output: states.__setitem__(name, tokens_of(output))

        yield site.block.register_forward_pre_hook(given("resid_pre"), with_kwargs=True)
        yield site.middle.register_forward_pre_hook(given("resid_mid"), with_kwargs=True)
        yield site.attention.register_forward_hook(put_out("attn_out"))
        yield site.mlp.register_forward_hook(put_out("mlp_out"))

    def seen(self, layer: int, rows: Tensor, stay: int) -> States:
        """What a candidate sees at the end of a block whose output is `rows` (B, N, C)."""
        here = States({name: self.free(state) for name, state in self.states[layer].items()})
        here["resid_post"], here.stay = self.free(rows), stay
        before = self.states.get(layer - 1, self.states[layer])
        here.previous = self.free(before["shift"] if "shift" in before else SHIFTS["mlp paper"](States(before)))
        return here

    def free(self, rows: Tensor) -> Tensor:
        return rows[:, self._subject.prefix : rows.shape[1] - self._subject.suffix]


@contextmanager
def resumed(subject: Subject, first: int, state: Any) -> Iterator[None]:
    """Within it blocks before `first` do nothing, and the last of them gives `state`."""
    before = [site.block for site in subject.sites[: first - 1]]
    try:
        for block in before:
            block.forward = lambda x, *args, **kwargs: x
        if before:
            before[-1].forward = lambda *args, **kwargs: state
        yield
    finally:
        for block in before:
            del block.forward


def method_of(candidate: Candidate, watch: Watch) -> Any:
    """The candidate as the engine takes a method."""

    def score(seen: Seen, case: Case) -> Tensor:
        assert candidate.score is not None
        whole = watch.states[seen.layer]["resid_post"]
        return candidate.score(watch.seen(seen.layer, whole, seen.stay))

    def reduce(seen: Seen, case: Case) -> Any:
        return candidate.reduce(watch.seen(seen.layer, seen["rows"], seen.stay), seen)

    if candidate.score is None:
        return SimpleNamespace(needs=lambda case: (), reduce=reduce, OPTIONS={})
    return SimpleNamespace(needs=lambda case: ("resid_post",), score=score, OPTIONS={})


class Runs:
    """All candidates on all batches of one schedule."""

    def __init__(self, bench: Bench, schedule: Schedule) -> None:
        self._bench, self._schedule, self._watch = bench, schedule, Watch(bench.subject)
        self._first = schedule.layers[0]
        self._kept = [self._before(inputs) for inputs in bench.batches]

    def _before(self, inputs: Any) -> tuple[Any, Tensor | None]:
        if self._first == 1:
            return None, None
        found: list[Any] = []
        layer, subject = self._first - 1, self._bench.subject
        handle = subject.sites[layer - 1].block.register_forward_hook(lambda m, a, output: found.append(output))
        with self._watch.looking([layer]):
            call(subject.module, inputs)
        handle.remove()
        shift = SHIFTS["mlp paper"](States(self._watch.states[layer]))
        return found[0], shift

    def directions(self) -> tuple[Tensor, Tensor]:
        """The map (C, RANK) and the linear score (C) of a calibration: gradients of the output to the cut's states.

        The directions are the principal ones of the gradients; the linear score is a ridge regression of
        log |g (x^ - mean)| on the normed state, both centred within their sample.
        """
        subject, grads, states = self._bench.subject, [], []
        torch.manual_seed(0)
        for (state, _), inputs in list(zip(self._kept, self._bench.batches, strict=True))[:4]:
            leaf: list[Tensor] = []
            handle = subject.sites[self._first - 1].block.register_forward_hook(
                lambda m, a, output, leaf=leaf: leaf.append(tokens_of(output).detach().requires_grad_()) or leaf[0]
            )
            with resumed(subject, self._first, state), torch.enable_grad():
                out = subject.pooled(call(subject.module, inputs))
                ways = [(out * torch.randn_like(out)).sum() for _ in range(DRAWS)]
                rows = [torch.autograd.grad(way, leaf[0], retain_graph=True)[0] for way in ways]
            handle.remove()
            grads.append(torch.stack([self._watch.free(g) for g in rows]))
            states.append(self._watch.free(leaf[0].detach()))
        g, x = torch.cat(grads, 1), torch.cat(states)
        ways = torch.linalg.eigh(torch.einsum("dbnc,dbnk->ck", g, g)).eigenvectors[:, -RANK:]
        target = (g * (x - x.mean(1, keepdim=True))).sum(-1).abs().mean(0).clamp_min(1e-12).log()
        normed = torch.nn.functional.normalize(x, dim=-1)
        a = (normed - normed.mean(1, keepdim=True)).flatten(0, 1).double()
        b = (target - target.mean(1, keepdim=True)).flatten().double()
        gram = a.T @ a
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram))
        return ways, torch.linalg.solve(gram, a.T @ b).float()

    def run(self, method: Any, name: str, seed: int = 0) -> dict[str, np.ndarray]:
        """Every measure (samples,) of a candidate, or of a method of the tool."""
        case = self.case(name, seed)
        bench, found = self._bench, []
        wrapped = method_of(method, self._watch) if isinstance(method, Candidate) else method
        torch.manual_seed(seed)
        layers = sorted({n for layer in self._schedule.layers for n in (layer - 1, layer) if n >= self._first})
        with self._watch.looking(layers), self._ends(), pruned(bench.subject, wrapped, case):
            for place, inputs in enumerate(bench.batches):
                state, shift = self._kept[place]
                if shift is not None:
                    self._watch.states[self._first - 1] = {"shift": shift}
                with resumed(bench.subject, self._first, state):
                    found.append(bench.measure(call(bench.subject.module, inputs), place))
        return {key: np.concatenate([f[key] for f in found]) for key in found[0]}

    @contextmanager
    def _ends(self) -> Iterator[None]:
        """The outputs of cut blocks are among the states: a hook that is there before the engine's."""
        handles = []
        for layer in self._schedule.layers:
            states = self._watch.states.setdefault(layer, {})
            handles.append(
                self._bench.subject.sites[layer - 1].block.register_forward_hook(
                    lambda m, a, output, states=states: states.__setitem__("resid_post", tokens_of(output))
                )
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def seconds(self, method: Any, name: str, inputs: Any) -> float:
        """One whole forward."""
        wrapped = method_of(method, self._watch) if isinstance(method, Candidate) else method
        subject, looking = self._bench.subject, isinstance(method, Candidate)
        layers = sorted({n for layer in self._schedule.layers for n in (layer - 1, layer) if n and looking})
        with self._watch.looking(layers), self._ends(), pruned(subject, wrapped, self.case(name)):
            began = time.perf_counter()
            call(subject.module, inputs)
            return time.perf_counter() - began

    def case(self, name: str, seed: int = 0) -> Case:
        known = registry.parts("reduction").get(name)
        taken = {o: v for o, v in OPTIONS.items() if known and o in registry.options_of(known)}
        return Case(
            "real", "real", "real", None, None, 1, "fp32", "cpu", "vanilla", pruning=name, keep=self._schedule.keep,
            layers=self._schedule.layers, options=tuple(taken.items()), seed=seed,
        )  # fmt: skip


CHOICES: dict[str, tuple[str, ...]] = {
    "shift, best sign and operation": tuple(sign + name for name in SHIFTS for sign in "+-"),
    "shift on gradient directions": tuple(
        f"{sign}projected {what}" for what in ("update", "shift", "state") for sign in "+-"
    ),
    "learnt linear score": ("+learnt linear",),
    "highest of each stratum": tuple(
        f"stratified {n}" for n in ("+shift", "-shift", "+norm", "-norm", "+mean distance", "-mean distance")
    ),
    "farthest point and shift": ("greedy +0.3", "greedy -0.3"),
    "shift over two blocks": tuple(f"{sign}two blocks {what}" for what in ("sum", "difference") for sign in "+-"),
    "norm, best sign": ("+norm", "-norm"),
    "novelty": ("peaks place",),
    "novelty in the order of a score": tuple(f"peaks {n}" for n in ORDERS if n != "place"),
    "farthest from the mean": ("+mean distance",),
    "unlike its neighbours": ("+neighbour distance",),
    "merged into nearest kept": tuple(f"merge {n}" for n in DESTINATIONS),
}
"""What is tried on held-out data: of each, per schedule, the candidate of the least loss on the calibration split."""


def own_methods(bench: Bench) -> Iterator[tuple[str, Any, int]]:
    """Name, method and seed of the tool's methods that are run beside."""
    for name in OWN:
        if name not in bench.skipped:
            for seed in range(SEEDS if name == "random" else 1):
                yield name, registry.load(registry.find("reduction", name)), seed


def chosen(calibration: dict[str, Any], schedule: Schedule, loss: str) -> dict[str, str]:
    """The candidate of each choice, by the calibration's mean loss (a similarity counts negative)."""
    found = calibration.get(str(schedule)) or next(iter(calibration.values()))
    sign = -1 if loss == "cosine" else 1
    value = {name: sign * float(np.mean([run[loss] for run in runs])) for name, runs in found.items()}
    tried = {name: [one for one in some if one in value or len(some) == 1] for name, some in CHOICES.items()}
    return {name: min(some, key=lambda one: value.get(one, 0.0)) for name, some in tried.items() if some}


def compare(
    bench: Bench, maps: Bench, calibration: dict[str, Any] | None, only: str = "", confirm: Sequence[str] = ()
) -> Iterator[tuple[str, str, str, Any]]:
    """Schedule, name, candidate and measures of every run: of all candidates, or those named or chosen beforehand."""
    for schedule in bench.schedules:
        runs = Runs(bench, schedule)
        if confirm:
            every, picks = candidates(), {name: name for name in confirm}
        else:
            ways = runs.directions() if maps is bench else Runs(maps, schedule).directions()
            every = {**candidates(), **projected(*ways)}
            picks = chosen(calibration, schedule, bench.loss) if calibration else {name: name for name in every}
        asked = [*own_methods(bench), *((name, every[pick], 0) for name, pick in picks.items())]
        for name, method, seed in (one for one in asked if any(part in one[0] for part in only.split(","))):
            began = time.perf_counter()
            found = runs.run(method, name, seed)
            means = " ".join(f"{k} {v.mean():.4f}" for k, v in found.items())
            print(f"{schedule} {name} {seed} {means} {time.perf_counter() - began:.1f}s", file=sys.stderr, flush=True)
            yield str(schedule), name, picks.get(name, name), found


def summary(raw: dict[str, Any], told: dict[str, Any], times: dict[str, list[float]]) -> dict[str, Any]:
    """What is kept, by method and measure: the means by schedule, and those of each sample over schedules and seeds."""
    names = list(next(iter(raw.values())))
    measures = [key for key in next(iter(raw.values()))[names[0]][0] if key != "candidate"]
    schedules = [schedule for schedule, found in raw.items() if len(found) == len(names)]  # not one that was ended
    methods: dict[str, Any] = {}
    for name in names:
        runs = [raw[schedule][name] for schedule in schedules]
        seeds = {key: np.array([np.mean([r[key] for r in found], axis=0) for found in runs]) for key in measures}
        methods[name] = {
            "chosen": [found[0]["candidate"] for found in runs],
            **{
                key: {"schedules": v.mean(1).round(5).tolist(), "samples": v.mean(0).round(4).tolist()}
                for key, v in seeds.items()
            },
            "time_vs_oracle": times.get(name, []),
        }
    return {**told, "schedules": schedules, "methods": methods}


def timed(bench: Bench, picks: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Whole forwards of four samples over the oracle's, interleaved, at the second schedule: one ratio per round."""
    runs, every = Runs(bench, bench.schedules[1]), candidates()
    if any(pick not in every for pick in picks.values()):
        every |= projected(*runs.directions())
    asked = {name: method for name, method, seed in own_methods(bench) if not seed}
    asked |= {name: every[pick] for name, pick in picks.items()}
    oracle = registry.load(registry.find("reduction", "oracle"))
    inputs = {key: v[:4] if isinstance(v, Tensor) else v for key, v in bench.batches[0].items()}
    found: dict[str, list[float]] = {name: [] for name in asked}
    for number in range(rounds + 1):
        for name, method in asked.items():
            ratio = runs.seconds(method, name, inputs) / runs.seconds(oracle, "oracle", inputs)
            if number:
                found[name].append(round(ratio, 4))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--split", choices=("calibration", "test"), default="calibration")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--only", default="", help="run only what has one of these, with commas between, in its name")
    parser.add_argument("--skip", type=int, default=0, help="test samples that are left out, in the order of the split")
    parser.add_argument("--confirm", nargs="*", default=[], help="candidates that are run as they are")
    parser.add_argument("--choose", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--raw", type=Path, help="sum up these measurements and time their methods")
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    calibration = merged([json.loads(path.read_text()) for path in given.choose])
    with torch.no_grad(), attending(vanilla):
        (measured if given.raw is None else summed_up)(given, calibration)


def measured(given: argparse.Namespace, calibration: dict[str, Any]) -> None:
    """Run all, and keep every measure of every sample after each run."""
    make, raw = MODELS[given.model], dict[str, Any]()
    bench = make(given.real, given.split, given.count, given.skip)
    whole = given.split == "calibration" or given.confirm
    maps = bench if whole else make(given.real, "maps", min(64, given.count))
    for schedule, name, pick, found in compare(bench, maps, calibration, given.only, given.confirm):
        entry = raw.setdefault(schedule, {}).setdefault(name, [])
        entry.append({"candidate": pick, **{k: v.round(5).tolist() for k, v in found.items()}})
        given.out.write_text(json.dumps(raw))


def summed_up(given: argparse.Namespace, calibration: dict[str, Any]) -> None:
    """What is kept of the measurements, with the times."""
    raw = json.loads(given.raw.read_text())
    bench = MODELS[given.model](given.real, "maps", 16)
    picks = {name: name for name in given.confirm} or chosen(calibration, bench.schedules[1], bench.loss)
    times = timed(bench, picks, given.rounds)
    told = {"model": given.model, "date": str(date.today()), "torch": torch.__version__}
    tried = len(given.confirm) or sum(map(len, CHOICES.values()))
    given.out.write_text(json.dumps(summary(raw, {**told, "tried": tried, "skipped": given.skip}, times)) + "\n")


def merged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Calibrations of different candidates on the same samples as one."""
    schedules = found[0] if found else {}
    return {schedule: {name: runs for one in found for name, runs in one[schedule].items()} for schedule in schedules}


if __name__ == "__main__":
    main()
