"""An evaluation made ready: data read and put in order, the model built once, every variant a step on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from repshift_cli import registry
from repshift_cli.benchmark import builder
from repshift_cli.benchmark.planning import plan_cases
from repshift_cli.evaluation import datasets, tasks
from repshift_cli.evaluation.decoding import Decode, Decoder
from repshift_cli.evaluation.feeding import Feed, Pixels, Prompts, Texts
from repshift_cli.evaluation.loop import Contender
from repshift_cli.evaluation.order import Order, preprocessing_of
from repshift_cli.evaluation.results import RANDOM, reference_of
from repshift_cli.evaluation.samples import IMAGE, LABEL, Sample, is_clip, renamed, stratified
from repshift_cli.evaluation.tasks import Context
from repshift_cli.machine import device as devices
from repshift_cli.machine.cores import choose_threads, set_threads
from repshift_cli.machine.packages import find_spec, install
from repshift_cli.models.base.text import sentence_subject
from repshift_cli.models.inputs.preprocessing import Preprocessing
from repshift_cli.records import METHODS_WITHOUT_PRUNING, Case, Record, Subject, UsageError
from repshift_cli.sweep.plan import Planned

FEW_IMAGES = 500
"""Fewer are decoded faster in this process than others are started for it."""
MOST_WORKERS = 4
FRAMES = 8
"""Of a clip, for a model of images, where --frames says nothing else."""
BUILT_WITH = 2
"""The batch that a model is built and looked at with; it is evaluated with the order's own."""


@dataclass(frozen=True)
class Data:
    """What is evaluated: `samples` in the order in which that happens."""

    samples: Sequence[Sample]
    training: Sequence[Sample]
    format: str


@dataclass(frozen=True)
class Assembled:
    """All that the loop needs. `refused` are variants that cannot be here; `notes` what must be said."""

    device: str
    cases: tuple[Case, ...]
    contenders: list[Contender]
    refused: tuple[Record, ...]
    data: Data
    context: Context
    feed: Feed
    decoder: Decoder
    preprocessing: Preprocessing | None
    notes: tuple[str, ...]
    threads: int


def read(order: Order) -> Data:
    """The samples of the data; those of the training split where one is named."""
    kind, found = datasets.read(order.data, order.split)
    samples = renamed(found, order.columns)
    labels = [sample.columns.get(LABEL) for sample in samples]
    places = stratified(labels, order.sweep.seed)
    training: list[Sample] = []
    if order.train is not None:
        place, split = (order.train, None) if os.path.exists(order.train) else (order.data, order.train)
        training = renamed(datasets.read(place, split)[1], order.columns)
    return Data([samples[i] for i in places], training, kind)


def planned(order: Order, device: str) -> list[Planned]:
    """The variants, random dropping once for every seed, on the data as their input; the unpruned one is always there.

    UsageError where the unpruned model cannot be run, for all others are compared with it.
    """
    sweep = order.sweep
    if all("+" in variant for variant in sweep.variant):
        sweep = replace(sweep, variant=(sweep.variant[0].partition("+")[0], *sweep.variant))
    cells = []
    for cell in plan_cases(sweep, device):
        case = replace(cell.case, input=order.data)
        seeds = range(sweep.seed, sweep.seed + (order.seeds if case.pruning == RANDOM else 1))
        cells += [replace(cell, case=replace(case, seed=seed)) for seed in seeds]
    unpruned = [cell for cell in cells if cell.case.pruning == METHODS_WITHOUT_PRUNING]
    if not any(cell.refused is None for cell in unpruned):
        raise UsageError(f"the unpruned model cannot be run: {unpruned[0].refused}")
    return cells


def assemble(order: Order) -> Assembled:
    """Everything made ready; UsageError for what does not fit together."""
    data = read(order)
    order, frames = _frames(order, data)
    device = devices.choose_device(order.sweep.device)
    threads = choose_threads(order.sweep.threads)
    set_threads(threads)
    cells = planned(order, device)
    possible = [cell for cell in cells if cell.refused is None]
    cases = [cell.case for cell in possible]
    first = next(case for case in cases if reference_of(case, cases) is None)
    subject = _subject(first)
    contenders = [Contender(c.case, c.tokens, builder.eager_step(c.case, subject)) for c in possible]
    family = registry.load(registry.resolve_model(first.model))
    names = family.class_names(first.model)
    asked = {"neighbours": order.neighbours, "refit": order.refit}
    towers = partial(family.towers, first)
    context = Context(subject, first, cases, data.samples, data.training, names, device, asked, towers, frames)
    feed, how = _feed(order, subject, first, family)
    decode = Decode(how, frames or first.frames) if how else None
    decoder = Decoder(decode, _workers(order, len(data.samples)))
    refused = tuple(Record(c.case, "skipped", c.refused, c.tokens) for c in cells if c.refused)
    notes = tuple(dict.fromkeys(subject.warnings))
    every = tuple(cell.case for cell in cells)
    return Assembled(device, every, contenders, refused, data, context, feed, decoder, how, notes, threads)


def _frames(order: Order, data: Data) -> tuple[Order, int | None]:
    """How many frames of each clip a model of images is shown one by one, and the order without that; None where it
    takes clips, or the data are none. UsageError where there is nothing to decode them with."""
    sweep = order.sweep
    if not is_clip(data.samples[0].columns.get(IMAGE)):
        return order, None
    if find_spec("av") is None:
        raise UsageError(f"{order.data}: decoding clips needs PyAV: {install('video')}")
    if builder.facts_of(sweep.weights, sweep.model[0], next(iter(sweep.image_size), None), None).frames is not None:
        return order, None
    return replace(order, sweep=replace(sweep, frames=())), next(iter(sweep.frames), FRAMES)


def _subject(case: Case) -> Subject:
    """The built model; a text encoder's blocks looked at once more with padding, whose mask is cut along."""
    subject = builder.lone_step(replace(case, input="random", batch=BUILT_WITH)).subject
    if not tasks.is_text(subject.inputs) or tasks.is_decoder(subject.inputs):
        return subject
    mask = torch.ones_like(subject.inputs["input_ids"])
    mask[-1, -1] = 0
    padded = {**subject.inputs, "attention_mask": mask}
    return sentence_subject(subject.module, (padded,), subject.warnings)


def _feed(order: Order, subject: Subject, case: Case, family: Any) -> tuple[Feed, Preprocessing | None]:
    """How samples become inputs, and what is done to images."""
    if not tasks.is_text(subject.inputs):
        size = case.image_size or _side(subject.inputs)
        told = family.preprocessing(case.model)
        base = told.at(size) if told is not None else Preprocessing(size)
        how = preprocessing_of(order.preprocess, base)
        if how.crop != size:
            raise UsageError(f"--preprocess crop={how.crop}: the model takes {size} px; add --image-size {how.crop}")
        return Pixels(subject, how), how
    if order.preprocess is not None:
        raise UsageError(f"--preprocess applies to images, and {case.model} takes text")
    if tasks.is_decoder(subject.inputs):
        return Prompts(subject), None
    if not case.model.startswith("hf:"):
        raise UsageError(f"{case.model} has random weights and no tokenizer; name a checkpoint, --model hf:FOLDER")
    return Texts(case.model.removeprefix("hf:"), case.length or 512, case.device), None


def _side(inputs: Any) -> int:
    """The pixels of a side of the model's own inputs."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return int(next((v.shape[-1] for v in values if getattr(v, "ndim", 0) in (4, 5)), 224))


def _workers(order: Order, count: int) -> int:
    if order.workers is not None:
        return order.workers
    return 0 if count < FEW_IMAGES else min(MOST_WORKERS, len(os.sched_getaffinity(0)))
