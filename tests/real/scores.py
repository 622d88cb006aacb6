"""Compares candidates for a score of our own on real weights, on data that was not used to choose among them.

    python tests/real/scores.py REAL MODEL --split calibration --out CALIBRATION.json
    python tests/real/scores.py REAL MODEL --split test --choose CALIBRATION.json --out RESULT.json
    python tests/real/scores.py REAL MODEL --times --choose CALIBRATION.json --out RESULT.json

MODEL is dinov2 (a linear probe on Fashion-MNIST), minilm (mails) or smollm2 (prose); REAL is the folder that prepare.py,
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
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from candidates import DESTINATIONS, ORDERS, SHIFTS, Candidate, States, candidates, projected
from torch import Tensor

from repshift_cli import registry
from repshift_cli.attention import vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark import builder
from repshift_cli.evaluation import datasets
from repshift_cli.evaluation.samples import Sample, stratified
from repshift_cli.evaluation.tasks.probe import Heads
from repshift_cli.models.inputs.images import normalised
from repshift_cli.models.inputs.sentences import tokenizer_of
from repshift_cli.records import Case, Subject, call
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.seen import Seen
from repshift_cli.reduction.engine.state import tokens_of

SEEDS = 3
OWN = ("random", "stride", "repshift", "lowest", "norm", "tome", "cls_attention", "divprune")
"""Methods of the tool that are run beside."""
OPTIONS = {"operation": "mlp", "distance": "l2", "form": "paper", "proportional": "on", "map": "rows"}
RANK, DRAWS = 16, 4
"""Directions of a calibrated map, and random projections of the output whose gradients make it."""


@dataclass(frozen=True)
class Schedule:
    layers: tuple[int, ...]
    keep: float

    def __str__(self) -> str:
        return f"{','.join(map(str, self.layers))} keep {self.keep:g}"


@dataclass
class Bench:
    """A model with its data: `batches` of inputs, and `measure(output, place)` -> (B,) by name for batch `place`."""

    subject: Subject
    schedules: Sequence[Schedule]
    batches: list[Any]
    measure: Callable[[Any, int], dict[str, np.ndarray]]
    loss: str
    skipped: tuple[str, ...] = ()
    unpruned: dict[str, float] = field(default_factory=dict)


# --- running from a cut on -------------------------------------------------------------------------------------------


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


# --- the models ------------------------------------------------------------------------------------------------------


def subject_of(folder: Path, batch: int, **changes: Any) -> Subject:
    blank = Case(f"hf:{folder}", "random", str(folder), None, None, batch, "fp32", "cpu", "vanilla")
    return builder.lone_step(replace(blank, **changes)).subject


def cosine(a: Tensor, b: Tensor) -> np.ndarray:
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).numpy()


def kl(wanted: Tensor, found: Tensor) -> np.ndarray:
    p, q = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).numpy()


def batched(subject: Subject, inputs: Sequence[Any]) -> Tensor:
    return torch.cat([subject.pooled(call(subject.module, one)).clone() for one in inputs])


def with_heads(subject: Subject, train: list[Any], labels: Tensor, classes: int, test: list[Any], right: Tensor) -> Any:
    """A linear probe and neighbours, fitted on the unpruned features of `train`."""
    if not train:
        return None, {}
    heads = Heads(batched(subject, train), labels, classes, 20)
    whole = [batched(subject, [one]) for one in test]
    starts = np.cumsum([0, *(len(w) for w in whole)])

    def measure(output: Any, place: int) -> dict[str, np.ndarray]:
        features = subject.pooled(output)
        truth = right[starts[place] : starts[place + 1]]
        return {
            "probe": (heads.linear(features) == truth).double().numpy(),
            "knn": (heads.nearest(features) == truth).double().numpy(),
            "cosine": cosine(features, whole[place]),
        }

    found = [measure(call(subject.module, one), place) for place, one in enumerate(test)]
    return measure, {key: float(np.concatenate([f[key] for f in found]).mean()) for key in ("probe", "knn")}


def of_split(samples: Sequence[Sample], first: int, count: int) -> list[Sample]:
    order = stratified([s["label"] for s in samples], 0)
    return [samples[i] for i in order[first : first + count]]


def grouped(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def dinov2(real: Path, split: str, count: int) -> Bench:
    from PIL import Image

    subject = subject_of(real / "dinov2_s", 16, image_size=112)
    kind = {name: datasets.read(str(real / "fashion"), name)[1] for name in ("train", "test")}
    fitted = of_split(kind["train"], 0, 1000)
    shown = of_split(kind["train"], 1500, count) if split != "test" else of_split(kind["test"], 0, count)
    names = sorted({s["label"] for s in fitted})
    told = json.loads((real / "dinov2_s" / "preprocessor_config.json").read_text())

    def inputs(samples: Sequence[Sample]) -> list[Any]:
        found = []
        for some in grouped(samples, 16):
            opened = [Image.open(s["image"]).convert("RGB").resize((112, 112), Image.Resampling.BICUBIC) for s in some]
            pixels = np.stack([np.asarray(image) for image in opened])
            found.append({"pixel_values": normalised(pixels, tuple(told["image_mean"]), tuple(told["image_std"]))})
        return found

    labels = [torch.tensor([names.index(s["label"]) for s in part]) for part in (fitted, shown)]
    batches = inputs(shown)
    measure, unpruned = with_heads(
        subject, inputs(fitted if split != "maps" else ()), labels[0], len(names), batches, labels[1]
    )
    schedules = [Schedule((layer,), 0.5) for layer in (2, 6, 9)]
    return Bench(subject, schedules, batches, measure, "cosine", (), unpruned)


def minilm(real: Path, split: str, count: int) -> Bench:
    """Mails that fill 64 tokens, so that none is padded; the first and the last token always stay."""
    tokenizer = tokenizer_of(str(real / "minilm"))
    subject = subject_of(real / "minilm", 16, length=64)
    subject = replace(subject, roles=None, marked=0, prefix=1, suffix=1)
    kind = {name: datasets.read(str(real / "spam.csv"), name)[1] for name in ("train", "test")}

    def full(samples: Sequence[Sample]) -> list[Sample]:
        return [s for s in samples if len(tokenizer(s["text"], truncation=True, max_length=64)["input_ids"]) == 64]

    kind = {name: full(samples) for name, samples in kind.items()}
    rest = len(kind["train"]) - 200
    fitted = of_split(kind["train"], 0, rest)
    shown = of_split(kind["train"], rest, count) if split != "test" else of_split(kind["test"], 0, count)
    names = sorted({s["label"] for s in fitted})

    def inputs(samples: Sequence[Sample]) -> list[Any]:
        found = []
        for some in grouped(samples, 16):
            texts = tokenizer([s["text"] for s in some], truncation=True, max_length=64, return_tensors="pt")
            found.append({"input_ids": texts["input_ids"]})
        return found

    labels = [torch.tensor([names.index(s["label"]) for s in part]) for part in (fitted, shown)]
    batches = inputs(shown)
    measure, unpruned = with_heads(
        subject, inputs(fitted if split != "maps" else ()), labels[0], len(names), batches, labels[1]
    )
    schedules = [Schedule((layer,), 0.5) for layer in (1, 3, 5)]
    return Bench(subject, schedules, batches, measure, "cosine", ("cls_attention",), unpruned)


def smollm2(real: Path, split: str, count: int) -> Bench:
    """Windows of 64 tokens of prose, of which the next is asked; the first, an attention sink, and the last stay."""
    tokenizer = tokenizer_of(str(real / "smollm2"))
    subject = subject_of(real / "smollm2", 4, length=64, protect="first:1")
    ids = tokenizer((real / "topics.txt").read_text(), verbose=False)["input_ids"]
    starts = range(0, len(ids) - 65, 65)
    half, count = len(starts) // 2, 32 if split == "maps" else count
    own = starts[half:] if split == "test" else starts[:half]
    own = own[:: max(1, len(own) // count)][:count]
    windows = torch.tensor([ids[i : i + 65] for i in own])
    batches = [{**subject.inputs, "input_ids": w[:, :64]} for w in windows.split(8)]
    following = windows[:, 64].split(8)
    whole = [subject.logits(call(subject.module, one)).clone() for one in batches]

    def measure(output: Any, place: int) -> dict[str, np.ndarray]:
        found = subject.logits(output)
        loss = torch.nn.functional.cross_entropy(found, following[place], reduction="none").numpy()
        return {"kl": kl(whole[place], found), "loss": loss}

    layers = (10,) if split == "calibration" else (5, 10, 20)
    schedules = [Schedule((layer,), 0.5) for layer in layers]
    return Bench(subject, schedules, batches, measure, "kl", ("cls_attention", "tome"))


MODELS = {"dinov2": dinov2, "minilm": minilm, "smollm2": smollm2}


# --- what is asked ---------------------------------------------------------------------------------------------------

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
    tried = {name: [one for one in some if one in value] for name, some in CHOICES.items()}
    return {name: min(some, key=value.__getitem__) for name, some in tried.items() if some}


def compare(
    bench: Bench, maps: Bench, calibration: dict[str, Any] | None, only: str = ""
) -> Iterator[tuple[str, str, str, Any]]:
    """Schedule, name, candidate and measures of every run: all candidates, or those that a calibration chose."""
    for schedule in bench.schedules:
        runs = Runs(bench, schedule)
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
    """What is kept: of every method the mean of each measure by schedule, and of each sample over schedules and seeds."""
    names = list(next(iter(raw.values())))
    measures = [key for key in next(iter(raw.values()))[names[0]][0] if key != "candidate"]
    methods: dict[str, Any] = {}
    for name in names:
        runs = [raw[schedule][name] for schedule in raw]
        seeds = {key: np.array([np.mean([r[key] for r in found], axis=0) for found in runs]) for key in measures}
        methods[name] = {
            "chosen": [found[0]["candidate"] for found in runs],
            **{
                key: {"schedules": v.mean(1).round(5).tolist(), "samples": v.mean(0).round(4).tolist()}
                for key, v in seeds.items()
            },
            "time_vs_oracle": times.get(name, []),
        }
    return {**told, "schedules": list(raw), "methods": methods}


def timed(bench: Bench, maps: Bench, picks: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Whole forwards of every method over the oracle's, interleaved, at the second schedule: one ratio per round."""
    runs = Runs(bench, bench.schedules[1])
    every = {**candidates(), **projected(*Runs(maps, bench.schedules[1]).directions())}
    asked = {name: method for name, method, seed in own_methods(bench) if not seed}
    asked |= {name: every[pick] for name, pick in picks.items()}
    oracle = registry.load(registry.find("reduction", "oracle"))
    inputs = bench.batches[0]
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
    parser.add_argument("--choose", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    make = MODELS[given.model]
    with torch.no_grad(), attending(vanilla):
        bench = make(given.real, given.split, given.count)
        maps = bench if given.split == "calibration" else make(given.real, "maps", min(64, given.count))
        calibration = merged([json.loads(path.read_text()) for path in given.choose])
        raw: dict[str, Any] = {}
        for schedule, name, pick, found in compare(bench, maps, calibration, given.only):
            entry = raw.setdefault(schedule, {}).setdefault(name, [])
            entry.append({"candidate": pick, **{k: v.round(5).tolist() for k, v in found.items()}})
            given.out.write_text(json.dumps(raw))
        if calibration:
            picks = chosen(calibration, bench.schedules[1], bench.loss)
            samples = sum(len(next(iter(one.values()))) for one in bench.batches)
            told = {
                "model": given.model, "samples": samples, "date": str(date.today()), "torch": torch.__version__,
                "tried": sum(map(len, CHOICES.values())), "unpruned": bench.unpruned,
            }  # fmt: skip
            given.out.write_text(json.dumps(summary(raw, told, timed(bench, maps, picks, given.rounds))))


def merged(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Calibrations of different candidates on the same samples as one."""
    return (
        {schedule: {name: v for one in found for name, v in one[schedule].items()} for schedule in found[0]}
        if found
        else {}
    )


if __name__ == "__main__":
    main()
