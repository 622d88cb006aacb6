"""Labelled data: the options by which they are read, and how they judge a model within changes, beside a look at it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli.analysis import stats
from repshift_cli.commands.shared import options
from repshift_cli.records import Case, Measurement, Record, UsageError
from repshift_cli.sweep.axes import Axes

if TYPE_CHECKING:
    from repshift_cli.inspection import Change, Judged

PANEL = "Labels"
NOTHING = (None, None, None)


def _option(metavar: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=PANEL, **more)


Data = Annotated[
    str | None,
    _option(
        "PATH",
        "Labelled data, as for `repshift eval`: heads says too how right the model is without its dormant ones.",
        "--labelled",
    ),
]
Task = Annotated[
    str | None,
    _option("NAME", "What is asked of the model there (`repshift eval --list`). (default: classification)"),
]
Split = Annotated[str | None, _option("NAME", "Which split of the labelled data, where it has several.")]
Train = Annotated[
    str | None,
    _option("SPLIT|PATH", "What --task probe is fitted on: a split of the labelled data, or other data."),
]
Limit = Annotated[
    int | None, _option("N", "Judge on a stratified sample of so many, drawn by --seed. (default: all)", min=2)
]


_READING: dict[str, tuple[Any, ...]] = {
    "split": (str, "NAME", "Which split of the data, where it has several."),
    "train": (str, "SPLIT|PATH", "What --task probe is fitted on: a split of the data, or other data."),
    "column": (list[str], "OURS=THEIRS", "Which column of the data is image, text, label ...; may be repeated."),
    "preprocess": (
        str,
        "TEXT",
        "Changes to the checkpoint's own preprocessing: resize=256,crop=224,interpolation=bilinear,mean=0.5,std=0.5.",
    ),
    "workers": (int, "N", "Processes that decode images. (default: up to 4, none for few images)", 0),
}


def reading(panel: str, *names: str) -> dict[str, Any]:
    """These options of how data are read, for `options.declared`."""
    return {name: options.optional(panel, *_READING[name]) for name in names}


def with_columns(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, those of --column as `columns`: theirs by ours."""
    columns = {}
    for text in given.get("column") or ():
        ours, equals, theirs = text.partition("=")
        if not equals:
            raise UsageError(f"--column {text}: write OURS=THEIRS, like label=fine_label")
        columns[ours] = theirs
    return {name: value for name, value in given.items() if name != "column"} | {"columns": columns}


@dataclass(frozen=True)
class Labels:
    """What was asked for."""

    data: str | None
    task: str | None
    split: str | None
    train: str | None
    limit: int | None

    def check(self) -> None:
        """UsageError for what needs labelled data where none is named."""
        others = [name for name, value in vars(self).items() if value is not None]
        if self.data is None and others:
            raise UsageError(f"--{others[0]} says how labelled data is used: name it with --labelled PATH")

    def as_options(self) -> dict[str, Any]:
        """What is set, by option."""
        plain = {"labelled": self.data, "task": self.task, "split": self.split, "train": self.train}
        return {name: value for name, value in (plain | {"limit": self.limit}).items() if value is not None}

    def judge(self, sweep: Axes, case: Case) -> Callable[[Mapping[str, Change]], Sequence[Judged]] | None:
        """The model of the case on the labelled data, with everything made ready; UsageError where it does not fit."""
        if self.data is None:
            return None
        from repshift_cli.evaluation.order import BATCH, Order
        from repshift_cli.evaluation.within import Labelled

        tokens = () if case.length is None else (case.length,)
        own = dataclasses.replace(sweep, variant=(case.attention,), batch=(BATCH,), tokens=tokens, data=None)
        order = Order(own, self.data, self.task or "classification", self.split, self.train, limit=self.limit)
        ready = Labelled.of(order)
        return lambda changes: [_judged(record, ready.metrics[0].name) for record in ready.records(changes)]


def _judged(record: Record, metric: str) -> Judged:
    """The record's first metric; RepshiftError where the evaluation failed."""
    from repshift_cli.inspection import Judged

    found = {m.metric: m for m in record.measurements}
    if metric not in found:
        raise UsageError(f"{record.case.variant}: {record.reason}")
    own = found[metric]
    difference = _figure(found.get(f"{metric}_vs_unpruned"))
    return Judged(own.label, own.unit, int(found["samples"].samples[0]), _figure(own), difference)


def _figure(measurement: Measurement | None) -> tuple[float | None, float | None, float | None]:
    figure = stats.estimate(measurement) if measurement is not None else None
    return NOTHING if figure is None else (figure.value, figure.low, figure.high)
