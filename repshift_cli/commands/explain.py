"""`repshift explain`: what was found of a model, before anything is measured."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from repshift_cli.benchmark import engine
from repshift_cli.commands.shared import options
from repshift_cli.commands.shared.options import Asked
from repshift_cli.commands.shared.output import STDOUT, check_outputs, prepare_stdout, write
from repshift_cli.records import WITHOUT_ATTENTION, UsageError, protection

if TYPE_CHECKING:
    from repshift_cli.sweep.axes import Axes


@options.sweep_options(
    only=("model", "keep", "layers", "image_size", "frames", "tokens", "removal", "protect", "weights")
)
def explain(
    asked: Asked,
    json_to: options.Json = None,
) -> None:
    """Say which blocks, branches and protected tokens a model has, or why it is refused."""
    check_outputs(json_to, None, None)
    sweep = options.checked_sweep(Asked({"variant": ["flash+repshift"], **asked.given}))
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
        _write(json_to, {"model": name, "refused": str(refusal), "looked": looked})
        if json_to != STDOUT:
            render_refused(name, refusal.looked, sys.stdout)
        raise
    _write(json_to, found)
    if json_to != STDOUT:
        render(found, sys.stdout)


def _write(target: str | None, data: dict[str, Any]) -> None:
    if target is not None:
        write(target, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _found(sweep: Axes) -> dict[str, Any]:
    """What was found, with the tokens along every schedule, from a forward of the first block at batch 1."""
    planned = engine.plan_cases(sweep, "cpu")
    from repshift_cli.benchmark import builder
    from repshift_cli.models.discovery.explain import explained

    cases = [p for p in planned if p.case.layers]
    case = cases[0].case
    schedules = [{"keep": p.case.keep, "layers": list(p.case.layers), "tokens": list(p.tokens)} for p in cases]
    return {
        "model": case.model,
        **explained(builder.lone_step(case).subject, protection(case.protect)),
        "default": case.operation,
        "attention": case.attention != WITHOUT_ATTENTION,
        "schedules": schedules,
    }
