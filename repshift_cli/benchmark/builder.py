"""Where the rooms meet: a case becomes a step, with its model built, its attention bound and its pruning applied."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repshift_cli import registry
from repshift_cli.attention.base.swap import attending
from repshift_cli.benchmark.contenders import Derived
from repshift_cli.benchmark.delay import delayed
from repshift_cli.benchmark.derived import paced_by_host, rates
from repshift_cli.benchmark.execution import compiled, graph
from repshift_cli.benchmark.failures import reason_of
from repshift_cli.benchmark.inputs import Inputs
from repshift_cli.benchmark.operators import measures, steps
from repshift_cli.benchmark.operators.choice import not_held
from repshift_cli.benchmark.outputs import output_of
from repshift_cli.benchmark.passes import Pass, passes
from repshift_cli.benchmark.runner import Parts
from repshift_cli.benchmark.timers import timer_for
from repshift_cli.benchmark.verification import verify, verify_library, verify_none
from repshift_cli.counters.base.choice import Choice
from repshift_cli.counters.base.traffic import CounterError
from repshift_cli.kernels import paths
from repshift_cli.kernels.select import not_finite
from repshift_cli.machine import nvml
from repshift_cli.machine.cpu_state import CpuWatch
from repshift_cli.machine.device import free_memory
from repshift_cli.models.base.subjects import protecting
from repshift_cli.models.inputs.clips import clip_files
from repshift_cli.models.inputs.images import image_files
from repshift_cli.models.inputs.more import with_more_inputs
from repshift_cli.probes import Context, Counter
from repshift_cli.profiling import kineto
from repshift_cli.records import (
    METHODS_WITHOUT_PRUNING,
    OPERATORS,
    WITHOUT_ATTENTION,
    Case,
    Facts,
    Measurement,
    RepshiftError,
    Step,
    Subject,
    Unbuildable,
    UsageError,
    call,
    shares_of,
)
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.selection import listening
from repshift_cli.reduction.engine.state import Dropped
from repshift_cli.sweep.operators import COLD
from repshift_cli.sweep.plan import Backend

BEHIND_A_PROFILER = (
    "timed in a process that had profiled before, so the host may have been slower by 10 to 20%; a run of this "
    "comparison alone is not"
)


def facts_of(
    weights: str | None,
    name: str,
    image_size: int | None,
    frames: int | None,
    length: int | None = None,
    data: str | None = None,
) -> Facts:
    """What planning must know of a model, from the family that builds it; UsageError where the model does not say.

    `length` and `data` go to families whose `facts` take them: those of sequences of tokens.
    """
    family = registry.load(registry.resolve_model(name))
    taken = inspect.signature(family.facts).parameters
    if length is not None and "length" not in taken:
        raise UsageError(f"{name} takes no sequence of tokens: --tokens does not apply to it")
    given = {"length": length, "data": data}
    extra = {option: value for option, value in given.items() if value is not None and option in taken}
    try:
        facts: Facts = family.facts(name, image_size, frames, weights, **extra)
    except (RepshiftError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Unbuildable(f"{name} cannot be built or run: {reason_of(error)}") from error
    return facts


def backend_for(name: str, device: str) -> Backend:
    """An attention back end as planning sees it."""
    part = registry.load(registry.find("attention", name))
    return Backend(part.OFFERS, part.unavailable(device))


def check_data(place: str, frames: int | None) -> None:
    """UsageError where there is no image to read, or no clip for a model that takes `frames` of one."""
    if frames is None:
        image_files(place)
    else:
        clip_files(place)


class StepBuilder:
    """Makes steps of the cases of one group after another; it holds one model at a time."""

    def __init__(
        self,
        device: str,
        delay: float = 0.0,
        choice: Choice | None = None,
        snapshot: Callable[[Case], Path] | None = None,
        probing: bool = True,
    ) -> None:
        self._device, self._delay, self._probing = device, delay, probing
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        self._counter = _counter(choice or Choice(None, "not asked for"))
        self._snapshot = snapshot
        self._peak = nvml.peak_bandwidth(device)
        self._watch = CpuWatch(torch.get_num_threads()) if device == "cpu" else nvml.Watch(device)
        self._group: tuple[Any, ...] | None = None
        self._subject: Subject | None = None
        self._broken: tuple[tuple[Any, ...], BaseException] | None = None
        self._behind: tuple[str, ...] = ()
        self._not_held: frozenset[Case] = frozenset()
        self.inputs = Inputs(())
        self._before: tuple[Pass, ...] = ()
        self._after: tuple[Pass, ...] = ()
        self.parts = Parts(
            prepare=self.prepare,
            verify=_verified,
            look=_looked,
            output=lambda step: None if step.case.model == OPERATORS else output_of(step),
            memory=lambda step: self._before,
            probes=self._passes_of,
            timer=timer_for(device),
            watch=self._watch.sample,
            before=self._begin,
            derive=self._derived,
        )

    def subject(self, case: Case) -> Subject:
        """The built model of the case's group, built once for all cases of the group that come after each other.

        A model that could not be built is not tried again: the error is raised anew.
        """
        if self._broken is not None and self._broken[0] == case.group:
            raise self._broken[1]
        if self._group != case.group:
            self._subject, self._before, self._after, self._group = None, (), (), None
            self.inputs = Inputs(())
            free_memory()
            try:
                subject = with_more_inputs(_built(case), case) if self._probing else _built(case)
            except (UsageError, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._broken = (case.group, error.with_traceback(None))  # a traceback would hold what it has built
                raise
            self.inputs = Inputs(subject.inputs)
            if self._probing:
                self._before, self._after = self._passes(case, self._context(subject, case.device))
            self._subject, self._group = subject, case.group
        assert self._subject is not None
        return self._subject

    def _context(self, subject: Subject, device: str) -> Context:
        """What the probes are given from outside."""
        return Context(
            subject,
            device,
            process_bytes=partial(nvml.process_bytes, device),
            card_bytes=partial(nvml.card_bytes, device),
            millijoules=partial(nvml.millijoules, device),
            synchronize=_synchronize,
            free_memory=free_memory,
            counter=self._counter,
            snapshot=self._snapshot,
        )

    def _passes(self, case: Case, context: Context) -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
        """The passes before the timed rounds and after; an operator has its own in the place of a model's."""
        before, after = passes(context)
        if case.model != OPERATORS:
            return before, after
        return before, (*measures.passes(), *(one for one in after if one.name not in measures.OF_MODELS))

    def _passes_of(self, step: Step) -> Sequence[Pass]:
        """All of them; a compiled operator shows no operators of torch to those that listen for them."""
        if step.case.model == OPERATORS and measures.hides_operators(step.case):
            return [one for one in self._after if one.name not in measures.LISTENING]
        return self._after

    def comparing(self, cases: Sequence[Case]) -> None:
        """What is made ready next is compared with each other: which operators fit into memory together, and whether
        they begin with cold caches, is settled."""
        self._not_held = not_held([case for case in cases if case.model == OPERATORS])
        cold = any(case.option("cache") == COLD for case in cases)
        self.parts = replace(self.parts, timer=timer_for(self._device, cold))

    def prepare(self, case: Case) -> Step:
        """The case as a step, captured in a CUDA graph where it asks for that."""
        step = _step(case, self.subject(case), case not in self._not_held)
        return replace(step, forward=delayed(step.forward, case.device, self._delay)) if self._delay else step

    def _derived(self, step: Step, measured: Sequence[Measurement], milliseconds: float) -> Derived:
        """What follows from counted bytes, the kernels' time and the time of a forward."""
        peak = self._peak if isinstance(self._peak, str) else self._peak.bytes_per_second
        found, words = rates(measured, milliseconds, step.case.batch, peak)
        words = [*words, *paced_by_host(measured, milliseconds, step.case.execution), *self._behind]
        if step.case.model != OPERATORS:
            return found, words
        more, others = measures.derived(step, milliseconds)
        return [*found, *more], [*words, *others]

    def _begin(self) -> Any:
        """Ahead of the timed rounds: the device's state, and whether CUPTI is attached already."""
        self._behind = (BEHIND_A_PROFILER,) if kineto.attached() else ()
        return self._watch.sample()


def lone_step(case: Case) -> Step:
    """The case as a step, with nothing else built: for the child that counts."""
    return _step(case, _built(case))


def _built(case: Case) -> Subject:
    """The model's subject, with what --protect adds to its protected tokens; an operator's are its q, k and v."""
    if case.model == OPERATORS:
        return steps.subject_of(case)
    subject: Subject = registry.load(registry.resolve_model(case.model)).build(case)
    return protected(subject, case)


def protected(subject: Subject, case: Case) -> Subject:
    """The subject with the tokens that the case protects beside the model's own."""
    return protecting(subject, case.protect, case.model)


def _step(case: Case, subject: Subject, held: bool = True) -> Step:
    step = steps.step_of(case, subject, held) if case.model == OPERATORS else eager_step(case, subject)
    return {"eager": lambda s: s, "graph": graph, "compile": compiled}[case.execution](step)


def _counter(choice: Choice) -> Counter:
    """The choice as the probe sees it; the card's memory that torch caches is given back before a child runs."""

    def count(case: Case) -> Sequence[Any]:
        free_memory()
        return choice.count(case)

    return Counter(choice.instrument, choice.reason, choice.label, count, (CounterError,), choice.modelled)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def within(case: Case, subject: Subject, noting: bool = False) -> Iterator[Dropped]:
    """Attention bound as the case asks and reduction applied; it gives what the last forward dropped (see `pruned`)."""
    backend, method = _backend(case.attention), _method(case.pruning)
    library = subject.eager if backend.OFFERS.library else None
    with (
        torch.inference_mode(),
        subject.context(),
        library() if library else nullcontext(),
        attending(backend),
        pruned(subject, method, case, noting) as dropped,
    ):
        yield dropped


def eager_step(case: Case, subject: Subject) -> Step:
    """The case on a subject that is built already: its attention bound and its tokens dropped while it is active."""
    dropped: list[Dropped] = []

    @contextmanager
    def active() -> Iterator[None]:
        with within(case, subject) as dropping:
            dropped[:] = [dropping]
            yield

    module, inputs = subject.module, subject.inputs
    return Step(
        case,
        subject,
        active,
        lambda: call(module, inputs),
        lambda given: call(module, given),
        kept=lambda: next(iter(dropped[0].kept[-1:]), None),
    )


def _verified(step: Step) -> str:
    """What attention was seen to run on."""
    if step.case.model == OPERATORS:
        return measures.verified(step)
    if step.case.attention == WITHOUT_ATTENTION:
        return verify_none(step.operators)
    backend = _backend(step.case.attention)
    if backend.OFFERS.library:
        return verify_library(step, backend.OPS)
    return verify(step, backend.OPS, backend.KERNELS)


def _looked(step: Step) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths that pruning's kernels took in one forward, and where its scores were not finite."""
    found: list[Tensor] = []
    twins = paths.using("torch") if step.case.execution == "compile" else nullcontext()
    with (
        twins,
        step.operators.active(),
        paths.seen() as ran,
        listening(lambda scores: found.append(not_finite(scores).sum())),
    ):
        step.operators.forward()
    counts = [(layer, int(count)) for layer, count in zip(shares_of(step.case), found, strict=False)]
    words = (
        f"{count} scores after block {layer} are not finite: such tokens count as highest and stay"
        for layer, count in counts
        if count
    )
    return tuple(ran), tuple(words)


@cache
def _backend(name: str) -> Any:
    return registry.load(registry.find("attention", name))


@cache
def _method(name: str) -> Any:
    return None if name == METHODS_WITHOUT_PRUNING else registry.load(registry.find("reduction", name))
