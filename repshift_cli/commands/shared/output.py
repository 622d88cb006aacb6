"""Outputs beside the table: an option for every renderer, checked before the work begins, written whole."""

from __future__ import annotations

import functools
import inspect
import io
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from repshift_cli import registry
from repshift_cli.records import RepshiftError, UsageError
from repshift_cli.records.store import check_writable, write_text
from repshift_cli.renderers import Renderer, View, takes
from repshift_cli.renderers.sheets import order
from repshift_cli.sweep.parsing import near, own_options

if TYPE_CHECKING:
    from repshift_cli.renderers import Document

STDOUT = "-"
PANEL = "Output"
METAVAR = "FILE|-"
"""What an output option takes, by which the program knows one."""
PLOT = "plot"
CHARTS: dict[str, tuple[str, str | None]] = {PLOT: ("Draw charts below the table.", None)}
VIEWS: dict[str, tuple[str, str | None]] = {
    "columns": ("Show these columns alone: latency,kl,vs_flash (names of `repshift metrics`, or their ends).", "LIST"),
    "wide": ("Show every column, however wide the table gets. (default: what the terminal holds; 100 if piped)", None),
    "quiet": ("Show the table, what failed and the answer, no progress and no notes.", None),
    "verbose": ("Show every note and every step of the progress.", None),
}
"""The options of a run's tables: what each is for, and what its value is called."""


@dataclass(frozen=True)
class Outputs:
    """Where a command's document goes beside the terminal: files by the name of the renderer, `-` being stdout."""

    targets: Mapping[str, str] = field(default_factory=dict)
    view: View = field(default_factory=View)
    plot: bool = False
    """Whether charts follow the table."""

    @property
    def own_stdout(self) -> bool:
        """Whether one of them has stdout to itself, so that nothing else may be printed there."""
        return STDOUT in self.targets.values()

    def check(self, others: Mapping[str, Path | None] | None = None) -> None:
        """UsageError for targets that cannot be, before anything is measured.

        `others` are files that the command writes by itself, by their options.
        """
        if self.plot and self.own_stdout:
            raise UsageError("--plot draws on stdout, which an output has to itself; leave it out, or name a file")
        places: dict[str, str] = {}
        named = [(option_of(name), target) for name, target in self.targets.items()]
        for option, target in [*((o, str(path)) for o, path in (others or {}).items() if path), *named]:
            place = target if target == STDOUT else str(Path(target).resolve())
            if clash := places.get(place):
                where = "stdout (-)" if target == STDOUT else target
                raise UsageError(f"{clash} and {option} both write to {where}; give one of them another file")
            places[place] = option
        for name, target in self.targets.items():
            if target != STDOUT and not _is_stream(Path(target)):
                _check_format(name, Path(target))
                check_writable(Path(target))

    def write(self, document: Document) -> None:
        """Write every output; one that cannot be written keeps none of the others back."""
        failed: RepshiftError | None = None
        for target, text in [(target, rendered(name, document)) for name, target in self.targets.items()]:
            try:
                write(target, text)
            except OSError as error:
                failed = failed or RepshiftError(f"cannot write {target}: {error.strerror or error}")
        if failed:
            raise failed

    def emit(self, document: Document, on_screen: Document | None = None) -> None:
        """Write every output; the table (of `on_screen`) goes to stdout unless one of them has it to itself.

        RepshiftError where a file could not be written; the table is shown all the same.
        """
        prepare_stdout()
        try:
            self.write(document)
        finally:
            if not self.own_stdout:
                self._show(on_screen or document, document)

    def _show(self, shown: Document, plotted: Document) -> None:
        shown = shown if shown.view is None else replace(shown, view=self.view)
        registry.load(registry.find("renderers", "table")).render(shown, sys.stdout)
        if self.plot:
            registry.load(registry.find("renderers", PLOT)).render(plotted, sys.stdout)


def output_options(*kinds: str, laid_out: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command an option for every renderer that takes its documents, and hands it them as `outputs`.

    `kinds` are those of the documents, `laid_out` says whether there are tables of them; the tables of a run can be
    looked at in several ways.
    """
    offered = {
        f"to_{part.name.replace('-', '_')}": part
        for part in registry.parts("renderers").values()
        if part.constants.get("OPTION", Renderer.OPTION)
        and any(takes(part.constants.get("TAKES", ()), k, laid_out) for k in kinds)
    }

    views = VIEWS if "run" in kinds else {}
    drawn = registry.find("renderers", PLOT).constants["TAKES"]
    charts = CHARTS if any(takes(drawn, kind, False) for kind in kinds) else {}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_outputs(**given: Any) -> Any:
            named = {part.name: given.pop(parameter, None) for parameter, part in offered.items()}
            view = _view({name: given.pop(name) for name in views})
            plot = any([given.pop(name) for name in charts])
            outputs = Outputs({name: target for name, target in named.items() if target is not None}, view, plot)
            outputs.check()
            return command(**given, outputs=outputs)

        own = inspect.signature(command, eval_str=True).parameters.values()
        made = [
            *(p for p in own if p.name != "outputs"),
            *(_parameter(name, option_of(part.name), part.help, METAVAR) for name, part in offered.items()),
            *(_parameter(name, f"--{name}", *told) for name, told in {**views, **charts}.items()),
        ]
        keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in made]
        with_outputs.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        with_outputs.__annotations__ = {p.name: p.annotation for p in keyword}
        return with_outputs

    return decorate


def _parameter(name: str, option: str, text: str, metavar: str | None) -> inspect.Parameter:
    """An option that takes a value called `metavar`, or none."""
    typed: Any = bool if metavar is None else str | None
    told = Annotated[typed, typer.Option(option, metavar=metavar, help=text, rich_help_panel=PANEL)]
    default = False if metavar is None else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=told)


def _view(given: Mapping[str, Any]) -> View:
    """What was asked of the tables; UsageError for what cannot be together, and for columns that nobody knows."""
    if not given:
        return View()
    for one, other in (("quiet", "verbose"), ("wide", "columns")):
        if given[one] and given[other]:
            raise UsageError(f"--{one} and --{other} ask for different things; leave one of them out")
    words = [word.strip() for word in (given["columns"] or "").split(",") if word.strip()]
    return View(**{**given, "columns": tuple(map(_checked, words))})


def _checked(word: str) -> str:
    """The word, if it means a column; the metrics of other packages are looked at only where it is none of ours."""
    names = [*order.known(), *own_options()]
    if not order.meant(word, names):
        from repshift_cli.benchmark.metrics import all_metrics

        names = list(dict.fromkeys([*names, *(metric.name for metric in all_metrics())]))
        if not order.meant(word, names):
            raise UsageError(
                f"--columns: no column is called {word!r}; {near(word, names)}`repshift metrics` lists them, beside "
                f"{', '.join(order.ROWS)}"
            )
    return word


def option_of(name: str) -> str:
    """The option of a renderer: `--github-action-benchmark`."""
    return f"--{name.replace('_', '-')}"


def with_stdout(arguments: Sequence[str], options: Collection[str]) -> list[str]:
    """The arguments with `-` behind each output option that stands without a file: it means stdout."""
    found: list[str] = []
    for argument, following in zip(arguments, [*arguments, "--"][1:], strict=True):
        found.append(argument)
        if argument in options and following.startswith("-") and following != STDOUT:
            found.append(STDOUT)
    return found


def _check_format(name: str, target: Path) -> None:
    """UsageError for a run file, or other JSON, that another format would take the place of."""
    if (
        target.suffix == ".json"
        and target.exists()
        and registry.find("renderers", name).constants.get("SUFFIX") != ".json"
    ):
        raise UsageError(f"{option_of(name)} would write over {target}, which is JSON; name another file")


def rendered(name: str, document: Document) -> str:
    """The document in that format; UsageError where it does not take such a document."""
    part = registry.find("renderers", name)
    accepted: Sequence[str] = part.constants.get("TAKES", ())
    if not takes(accepted, document.kind, document.lay_out is not None):
        raise UsageError(f"{option_of(name)} takes no {document.kind}, but {', '.join(accepted)}; leave it out")
    text = io.StringIO()
    registry.load(part).render(document, text)
    return text.getvalue()


def prepare_stdout() -> None:
    """A terminal without Unicode shows ? for a dash."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def write(target: str, text: str) -> None:
    """Write text to stdout (`-`), a stream or a file, which is replaced whole."""
    if target == STDOUT:
        sys.stdout.write(text)
    elif _is_stream(Path(target)):
        Path(target).write_text(text, encoding="utf-8")
    else:
        write_text(Path(target), text)


def _is_stream(path: Path) -> bool:
    """A pipe or a device, such as /dev/stderr: written to, never replaced."""
    return path.exists() and not path.is_file() and not path.is_dir()
