"""`repshift explain`: what was found of a model, before anything is measured."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from repshift_cli.commands.shared import checks, options
from repshift_cli.commands.shared.options import Asked
from repshift_cli.commands.shared.output import Outputs, output_options, prepare_stdout
from repshift_cli.records import WITHOUT_ATTENTION, Case, RepshiftError, Subject, Unbuildable, UsageError, protection
from repshift_cli.renderers import Document

if TYPE_CHECKING:
    from repshift_cli.sweep.axes import Axes


@options.sweep_options(
    only=(
        "model",
        "keep",
        "remove",
        "layers",
        "per_layer",
        "image_size",
        "frames",
        "tokens",
        "removal",
        "protect",
        "weights",
    )
)
@output_options("explanation", laid_out=False)
def explain(
    asked: Asked,
    *,
    outputs: Outputs,
) -> None:
    """Say what was found of a model. Its blocks, branches and protected tokens, or why it is refused."""
    sweep = checks.checked_sweep(Asked({"variant": ["flash+repshift"], **asked.given}))
    if max(map(len, (sweep.model, sweep.image_size, sweep.frames, sweep.tokens))) > 1:
        raise UsageError(
            "one model at one size is explained at a time; give --model, --image-size, --frames, --tokens one value"
        )
    prepare_stdout()
    from repshift_cli.models.discovery.blocks import NoSites
    from repshift_cli.renderers.sheets.explain import render, render_refused

    try:
        found = _found(sweep)
    except NoSites as refusal:
        name = sweep.model[0]
        looked = [{"what": what, "why": why} for what, why in refusal.looked]
        outputs.write(Document("explanation", {"model": name, "refused": str(refusal), "looked": looked}))
        if not outputs.own_stdout:
            render_refused(name, refusal.looked, sys.stdout)
        raise
    outputs.write(Document("explanation", found))
    if not outputs.own_stdout:
        render(found, sys.stdout)


def _found(sweep: Axes) -> dict[str, Any]:
    """What was found, with the tokens along every schedule, from a forward of the first block at batch 1."""
    from repshift_cli.benchmark import planning
    from repshift_cli.models.discovery.explain import explained

    cases = [p for p in planning.plan_cases(sweep, "cpu") if p.case.layers]
    case = cases[0].case
    schedules = [{"keep": p.case.keep, "layers": list(p.case.layers), "tokens": list(p.tokens)} for p in cases]
    return {
        "model": case.model,
        **explained(_subject(case), protection(case.protect)),
        "default": case.option("operation"),
        "attention": case.attention != WITHOUT_ATTENTION,
        "schedules": schedules,
    }


def _subject(case: Case) -> Subject:
    """The built model; Unbuildable where its own code fails."""
    from repshift_cli.benchmark import builder
    from repshift_cli.benchmark.failures import reason_of

    try:
        return builder.lone_step(case).subject
    except (RepshiftError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Unbuildable(f"{case.model} cannot be built: {reason_of(error)}") from error
