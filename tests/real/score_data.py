"""The real models and data on which candidates for a score of our own are compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repshift_cli.benchmark import builder
from repshift_cli.evaluation import datasets
from repshift_cli.evaluation.samples import Sample, stratified
from repshift_cli.evaluation.tasks.probe import Heads
from repshift_cli.models.inputs.images import normalised
from repshift_cli.models.inputs.sentences import tokenizer_of
from repshift_cli.records import Case, Subject, call


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
        return None
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

    return measure


def of_split(samples: Sequence[Sample], first: int, count: int) -> list[Sample]:
    order = stratified([s["label"] for s in samples], 0)
    return [samples[i] for i in order[first : first + count]]


def grouped(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def dinov2(real: Path, split: str, count: int, skip: int = 0) -> Bench:
    from PIL import Image

    subject = subject_of(real / "dinov2_s", 16, image_size=112)
    kind = {name: datasets.read(str(real / "fashion"), name)[1] for name in ("train", "test")}
    fitted = of_split(kind["train"], 0, 1000)
    shown = of_split(kind["train"], 1500, count) if split != "test" else of_split(kind["test"], skip, count)
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
    measure = with_heads(subject, inputs(fitted if split != "maps" else ()), labels[0], len(names), batches, labels[1])
    schedules = [Schedule((layer,), 0.5) for layer in (2, 6, 9)]
    return Bench(subject, schedules, batches, measure, "cosine", ("fastv",))


def minilm(real: Path, split: str, count: int, skip: int = 0) -> Bench:
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
    shown = of_split(kind["train"], rest, count) if split != "test" else of_split(kind["test"], skip, count)
    names = sorted({s["label"] for s in fitted})

    def inputs(samples: Sequence[Sample]) -> list[Any]:
        found = []
        for some in grouped(samples, 16):
            texts = tokenizer([s["text"] for s in some], truncation=True, max_length=64, return_tensors="pt")
            found.append({"input_ids": texts["input_ids"]})
        return found

    labels = [torch.tensor([names.index(s["label"]) for s in part]) for part in (fitted, shown)]
    batches = inputs(shown)
    measure = with_heads(subject, inputs(fitted if split != "maps" else ()), labels[0], len(names), batches, labels[1])
    schedules = [Schedule((layer,), 0.5) for layer in (1, 3, 5)]
    return Bench(subject, schedules, batches, measure, "cosine", ("fastv",))


def smollm2(real: Path, split: str, count: int, skip: int = 0) -> Bench:
    """Windows of 64 tokens of prose, of which the next is asked; the first, an attention sink, and the last stay."""
    tokenizer = tokenizer_of(str(real / "smollm2"))
    subject = subject_of(real / "smollm2", 4, length=64, protect="first:1")
    ids = tokenizer((real / "topics.txt").read_text(), verbose=False)["input_ids"]
    starts = range(0, len(ids) - 65, 65)
    half, count = len(starts) // 2, 32 if split == "maps" else count
    own = starts[half:] if split == "test" else starts[:half]
    own = own[skip:]
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
