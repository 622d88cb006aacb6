"""`repshift tokens`: which tokens stay, to look at."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from repshift_cli.commands.shared import checks, options
from repshift_cli.commands.shared.options import Asked
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.records import Progress, UsageError, store
from repshift_cli.sweep.axes import Axes

if TYPE_CHECKING:
    from repshift_cli.renderers.tokens.gallery import Gallery
    from repshift_cli.sweep.plan import Planned

MOST_CASES = 24
NEEDLESS = ("batch", "protect", "profile", "cuda_graph", "compile", "precision", "budget", "rounds", "hbm")
KINDS = (".png", ".gif", ".html")

Out = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A picture (.png; of a clip one for each frame), a moving one (.gif) or a page (.html). (default: the "
        "terminal alone)",
        rich_help_panel=options.OUTPUT,
    ),
]


@options.sweep_options(without=NEEDLESS)
def tokens(asked: Asked, out: Out = None) -> None:
    """Show which tokens stay. After each cut of an image, a clip or a sentence, method beside method."""
    if out is not None and out.suffix not in KINDS:
        raise UsageError(f"--out: {out} is none of {', '.join(KINDS)}; name it like tokens.png")
    if out is not None:
        store.check_writable(out)
    sweep = checks.checked_sweep(Asked({"variant": ["flash+repshift"], **asked.given}))
    gallery = _gallery(sweep)
    from repshift_cli.renderers.tokens import terminal

    terminal.render(gallery, sys.stdout)
    for path in _written(gallery, out) if out is not None else ():
        print(f"tokens: {path}", file=sys.stderr)


def _gallery(sweep: Axes) -> Gallery:
    """Every pruned case, run once on the same input."""
    from repshift_cli.benchmark import places, planning
    from repshift_cli.benchmark.builder import StepBuilder
    from repshift_cli.machine import device as devices
    from repshift_cli.renderers.tokens.gallery import Gallery

    device = devices.choose_device(sweep.device)
    cases = [p.case for p in _pruned(planning.plan_cases(dataclasses.replace(sweep, batch=(1,)), device))]
    builder, traces, shown = StepBuilder(device), [], None
    with Bar(len(cases)) as bar:
        for case in cases:
            bar.update(Progress(case.variant, 0.0))
            trace, shown = places.traced(case, builder.subject(case))
            traces.append(trace)
    assert shown is not None
    first = cases[0]
    return Gallery(" · ".join((first.model, f"weights {first.weights}", f"input {first.input}")), shown, tuple(traces))


def _pruned(planned: tuple[Planned, ...]) -> tuple[Planned, ...]:
    """The cells that prune, of one model and one input; UsageError where there is none, or one cannot be."""
    found = tuple(p for p in planned if p.case.layers)
    if not found:
        raise UsageError("no variant prunes, so every token stays; give one like --variant flash+repshift")
    for p in found:
        if p.refused:
            raise UsageError(f"{p.case.variant}: {p.refused}")
    if len({p.case.group for p in found}) > 1:
        raise UsageError("tokens shows one model and one input at a time; give one --model, --image-size and the like")
    if len(found) > MOST_CASES:
        raise UsageError(f"these are {len(found)} cases, more than {MOST_CASES}; give fewer --keep or --variant")
    return found


def _written(gallery: Gallery, out: Path) -> list[Path]:
    """The files that were made."""
    from repshift_cli.renderers.tokens import page, picture

    if out.suffix == ".html":
        store.write_text(out, page.page(gallery))
        return [out]
    sheets = picture.sheets(gallery)
    if out.suffix == ".gif":
        if len(sheets) == 1:
            raise UsageError("--out: a still image does not move; name it like tokens.png")
        return [_put(out, picture.gif(sheets))]
    if len(sheets) == 1:
        return [_put(out, picture.png(sheets[0]))]
    digits = len(str(len(sheets)))
    names = [out.with_name(f"{out.stem}-{i:0{digits}}{out.suffix}") for i in range(1, len(sheets) + 1)]
    return [_put(name, picture.png(sheet)) for name, sheet in zip(names, sheets, strict=True)]


def _put(path: Path, data: bytes) -> Path:
    with store.replacing(path) as temporary:
        temporary.write_bytes(data)
    return path
