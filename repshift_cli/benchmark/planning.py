"""The cells of a sweep, from what its models, back ends and methods say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from repshift_cli import registry
from repshift_cli.benchmark import builder, fitting
from repshift_cli.benchmark.operators.steps import operator_cells
from repshift_cli.records import WITHOUT_ATTENTION, UsageError
from repshift_cli.sweep import plan
from repshift_cli.sweep.axes import Axes
from repshift_cli.sweep.operators import OperatorAxes
from repshift_cli.sweep.parsing import LARGEST
from repshift_cli.sweep.plan import FactsOf, Planned, traits_of


def with_batches(sweep: Axes, device: str, say: Callable[[str], object] = lambda _: None) -> Axes:
    """The sweep with the batch `max` found, by forwards of every variant; `say` is told what is tried."""
    if LARGEST not in sweep.batch:
        return sweep
    if len(sweep.model) > 1:
        raise UsageError("--batch max is found for one model at a time; name one with --model")
    planned = plan_cases(replace(sweep, batch=()), device)
    found = fitting.largest_batch([p.case for p in planned if p.refused is None], device, say)
    batches = dict.fromkeys(found if batch == LARGEST else batch for batch in sweep.batch)
    return replace(sweep, batch=tuple(batches))


def plan_cases(
    sweep: Axes | OperatorAxes, device: str, watched: Callable[[FactsOf], FactsOf] = lambda facts_of: facts_of
) -> tuple[Planned, ...]:
    """The sweep's cells, `sweep.variant` being full names; `watched` stands around the question for a model's facts."""
    if isinstance(sweep, OperatorAxes):
        return operator_cells(sweep, device)
    parts = [registry.find_variant(variant) for variant in sweep.variant]
    names = {WITHOUT_ATTENTION, *(backend.name for backend, _ in parts)}
    backends = {name: builder.backend_for(name, device) for name in names}
    methods = {method.name: registry.options_of(method) for _, method in parts if method}
    traits = {method.name: traits_of(method) for _, method in parts if method}
    facts_of = watched(partial(builder.facts_of, sweep.weights, data=sweep.data))
    planned = plan.expand(sweep, device, facts_of, backends, methods, traits)
    if sweep.data is not None:
        for frames in dict.fromkeys(p.case.frames for p in planned if p.case.length is None):
            builder.check_data(sweep.data, frames)
    return planned
