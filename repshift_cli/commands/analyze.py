"""`repshift analyze`: why a token can go."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli import __version__, registry
from repshift_cli.commands.shared import checks, labelled, options
from repshift_cli.commands.shared.labelled import Labels
from repshift_cli.commands.shared.options import Asked
from repshift_cli.commands.shared.output import Outputs, output_options
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.machine import device as devices
from repshift_cli.machine.cores import choose_threads, set_threads
from repshift_cli.machine.describe import describe
from repshift_cli.records import Case, Progress, UsageError, store
from repshift_cli.records.inspection import INSPECTION_SCHEMA_VERSION, Answer, Inspection
from repshift_cli.records.json_codec import json_schema, to_json
from repshift_cli.renderers import document_of
from repshift_cli.sweep.parsing import parse

if TYPE_CHECKING:
    from repshift_cli.inspection import Look, Settings
    from repshift_cli.sweep.axes import Axes

NOTHING_ANSWERED = 5
QUESTIONS = "Questions"
BACKENDS = ("flash", "efficient", "vanilla")
"""The attention that is bound where none is named: the first of these that takes the model."""
SHARED = (
    "model",
    "variant",
    "dtype",
    "image_size",
    "frames",
    "tokens",
    "protect",
    "weights",
    "data",
    "device",
    "seed",
    "threads",
)


def _question_help() -> str:
    return f"What to ask: {', '.join(registry.ranked('inspection'))}. (default: all)"


def _asking(metavar: str, text: str, **more: Any) -> Any:
    return typer.Option(metavar=metavar, help=text, rich_help_panel=QUESTIONS, **more)


Question = Annotated[list[str] | None, _asking("LIST", _question_help())]
Inputs = Annotated[int, _asking("N", "Inputs looked at.", min=1)]
LeftOut = Annotated[
    int, _asking("N", "Tokens of each input that are left out one by one after each block, drawn at random.", min=4)
]
Blocks = Annotated[
    str | None, _asking("LIST", "Blocks after which tokens are left out: 1,4,7 or 1:12:3. (default: all)")
]
Packed = Annotated[
    int,
    _asking(
        "N",
        "Sinks: also in sequences packed of the beginnings of so many inputs, with start tokens or not, masked apart "
        "or not.",
        min=1,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="All that was found, for `repshift show`.", rich_help_panel=options.OUTPUT),
]
Schema = Annotated[
    bool, typer.Option("--schema", help="Print the JSON Schema of --out and stop.", rich_help_panel=options.OUTPUT)
]


@options.sweep_options(only=SHARED)
@output_options("inspection")
def analyze(
    asked: Asked,
    question: Question = None,
    inputs: Inputs = 4,
    left_out: LeftOut = 32,
    blocks: Blocks = None,
    packed: Packed = 1,
    labelled_data: labelled.Data = None,
    task: labelled.Task = None,
    split: labelled.Split = None,
    train: labelled.Train = None,
    limit: labelled.Limit = None,
    out: Out = None,
    schema: Schema = False,
    *,
    outputs: Outputs,
) -> None:
    """Say why a token can go. What the score sees of it, and what the model leans on."""
    if schema:
        typer.echo(json.dumps(inspection_schema(), indent=2))
        return
    labels = Labels(labelled_data, task, split, train, limit)
    names = _questions(question)
    _check_asked(names, labels, packed)
    outputs.check({"--out": out})
    if out is not None:
        store.check_writable(out)
    sweep = _sweep(asked)
    told = {"left_out": left_out, "blocks": _blocks(blocks), "packed": packed, "seed": sweep.seed}
    run = _inspected(sweep, names, inputs, told, labels)
    if out is not None:
        store.write_text(out, to_json(run))
    outputs.emit(document_of(run))
    raise typer.Exit(exit_code(run))


def exit_code(run: Inspection) -> int:
    """0 answered, 1 at least one question failed, 5 none could be asked."""
    statuses = {answer.status for answer in run.answers}
    return 1 if "failed" in statuses else 0 if "ok" in statuses else NOTHING_ANSWERED


def inspection_schema() -> dict[str, Any]:
    """The JSON Schema of what --out writes."""
    return json_schema(Inspection, f"repshift analyze, version {INSPECTION_SCHEMA_VERSION}")


# --- what is asked ----------------------------------------------------------------------------------------------------


def _questions(given: list[str] | None) -> tuple[str, ...]:
    """The questions by their files' names, in their order."""
    if not given:
        return registry.ranked("inspection")
    wanted = {registry.find("inspection", name.strip()).name for text in given for name in text.split(",")}
    return tuple(name for name in registry.ranked("inspection") if name in wanted)


def _check_asked(names: tuple[str, ...], labels: Labels, packed: int) -> None:
    """UsageError for an option of a question that is not asked."""
    labels.check()
    for option, given, name in (("--labelled", labels.data is not None, "heads"), ("--packed", packed > 1, "sinks")):
        if given and name not in names:
            raise UsageError(f"{option} is an option of the question {name}: add it to --question, or leave it out")


def _blocks(text: str | None) -> tuple[int, ...]:
    """The blocks of `1,4,7` or `1:12:3`; UsageError names what is none."""
    if text is None:
        return ()
    try:
        found = tuple(int(n) for n in parse("batch", text.split(",")))
    except UsageError as error:
        raise UsageError(f"--blocks {text!r} is no list of blocks: write 1,4,7 or 1:12:3") from error
    return found


def _check_blocks(blocks: tuple[int, ...], depth: int) -> None:
    """UsageError for a block that the model does not have."""
    if beyond := [n for n in blocks if n > depth]:
        raise UsageError(f"--blocks {beyond[0]}: the model has {depth} blocks")


def _sweep(asked: Asked) -> Axes:
    """What was asked for, of one model and one variant without pruning."""
    sweep = checks.checked_sweep(Asked({"variant": list(BACKENDS), **asked.given}))
    several = {
        "--model": sweep.model,
        "--image-size": sweep.image_size,
        "--frames": sweep.frames,
        "--dtype": sweep.dtype,
    }
    for name, values in several.items():
        if len(values) > 1:
            raise UsageError(f"one model in one setting is analyzed at a time: give {name} one value")
    if any("+" in variant for variant in sweep.variant) or ("variant" in asked.given and len(sweep.variant) > 1):
        raise UsageError(
            "--variant names one attention back end here, without a method: the unpruned model is looked at"
        )
    return dataclasses.replace(sweep, batch=())


# --- looking ----------------------------------------------------------------------------------------------------------


def _inspected(sweep: Axes, names: tuple[str, ...], inputs: int, told: dict[str, Any], labels: Labels) -> Inspection:
    """The model made ready once, and asked one question after another."""
    device = devices.choose_device(sweep.device)
    threads = choose_threads(sweep.threads)
    set_threads(threads)
    sweep = dataclasses.replace(sweep, threads=threads)
    cases = _cases(sweep, device)
    from repshift_cli.inspection import Settings

    settings = Settings(**told)
    with Bar(len(names)) as bar:
        bar.phase(f"building {cases[0][0].model}")
        look = look_at(cases[0], inputs, settings, tuple(cases[1:]))
        _check_blocks(settings.blocks, len(look.subject.sites))
        look = dataclasses.replace(look, judge=labels.judge(sweep, cases[0][0]))
        answers = []
        for name in names:
            tell = lambda share, name=name: bar.update(Progress(name, share))  # noqa: E731
            answers.append(_answered(name, dataclasses.replace(look, tell=tell)))
            bar.next()
    return Inspection(
        machine=dataclasses.replace(describe(device), threads=sweep.threads),
        options=sweep.as_options()
        | {"question": list(names), "inputs": inputs}
        | _settings(told)
        | labels.as_options(),
        case=cases[0][0],
        tokens=look.subject.tokens + look.subject.protected,
        inputs=len(look.inputs),
        answers=tuple(answers),
        warnings=look.subject.warnings,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=f"repshift {__version__}",
    )


def _settings(told: dict[str, Any]) -> dict[str, Any]:
    """What was told of the questions, as a file keeps it."""
    plain = {"left_out": told["left_out"], "blocks": list(told["blocks"]), "packed": told["packed"]}
    return {name: value for name, value in plain.items() if value not in ([], 1)}


def _cases(sweep: Axes, device: str) -> list[tuple[Case, ...]]:
    """The cases of every length, one for each attention back end that takes it; UsageError where none does.

    Most questions look at the first case of the first length alone.
    """
    from repshift_cli.benchmark import planning

    planned = planning.plan_cases(sweep, device)
    lengths = dict.fromkeys(p.case.length for p in planned)
    found = []
    for length in lengths:
        here = [p for p in planned if p.case.length == length]
        able = tuple(p.case for p in here if not p.refused)
        if not able:
            raise UsageError("; ".join(dict.fromkeys(str(p.refused) for p in here)))
        found.append(able)
    return found


def look_at(
    cases: tuple[Case, ...], inputs: int, settings: Settings, others: tuple[tuple[Case, ...], ...] = ()
) -> Look:
    """The first case's model built, its attention to be bound within `active()`, its first inputs one by one; the other
    cases are the same model under other attention."""
    from repshift_cli.benchmark import builder
    from repshift_cli.inspection import Look

    case = cases[0]
    step = builder.lone_step(case)
    alone = [one for batch in step.subject.evaluation for one in _one_by_one(batch, case.batch)]
    more = tuple(partial(look_at, other, inputs, settings) for other in others)
    look = Look(case, step.subject, step.active, tuple(alone[:inputs]), settings, more)
    beside = (builder.eager_step(other, step.subject) for other in cases[1:])
    return dataclasses.replace(
        look, beside=tuple(dataclasses.replace(look, case=s.case, active=s.active) for s in beside)
    )


def _one_by_one(batch: Any, size: int) -> Iterator[Any]:
    """The samples of a batch, each as a batch of one; what has no sample dimension goes with each."""

    def row(value: Any, n: int) -> Any:
        return value[n : n + 1] if getattr(value, "ndim", 0) and len(value) == size else value

    for n in range(size):
        yield (
            {name: row(value, n) for name, value in batch.items()}
            if isinstance(batch, dict)
            else tuple(row(value, n) for value in batch)
        )


def _answered(name: str, look: Look) -> Answer:
    """The answer, or why there is none."""
    from repshift_cli.benchmark.failures import PASSED_ON, reason_of

    part = registry.find("inspection", name)
    question = registry.load(part)
    title = part.help.partition(":")[0]
    if refused := question.unanswerable(look):
        return Answer(name, title, "skipped", refused)
    try:
        found: Answer = question.answer(look)
    except PASSED_ON:
        raise
    except BaseException as error:
        return Answer(name, title, "failed", reason_of(error))
    return found
