"""The progress of a sweep on stderr: a bar where a person is watching, else plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType

from repshift_cli.records import Case, printable_line
from repshift_cli.records import Progress as Word
from repshift_cli.renderers import View

SECONDS_BETWEEN_FRAMES = 0.2
SECONDS_BETWEEN_LINES = 20.0


def as_asked(view: View) -> Callable[[int], Bar]:
    """What makes the bar of so many comparisons, silent or with every step."""
    return partial(Bar, quiet=view.quiet, verbose=view.verbose)


class Bar:
    """One bar over all comparisons, with the live estimate and the time left.

    Where stderr is no terminal there is a line for each comparison, with what it came to, and one every 20 seconds
    within a long one. `quiet` says nothing, `verbose` gives every step a line. It is drawn only when the runner speaks,
    which is between the timed regions: a thread that draws would be timed.
    """

    def __init__(self, comparisons: int, quiet: bool = False, verbose: bool = False) -> None:
        self._comparisons = max(comparisons, 1)
        self._quiet, self._verbose = quiet, verbose
        self._done = 0
        self._begun = self._began_this = self._said = time.monotonic()
        self._estimate = ""
        self._share, self._workers = 0.0, 1
        self._drawn = 0.0
        self._bar = _rich_bar() if sys.stderr.isatty() and not quiet else None
        self._task = self._bar.add_task("starting", total=1.0, left="") if self._bar else None

    def __enter__(self) -> Bar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def phase(self, text: str) -> None:
        """Show what is being done, the share as it was."""
        self._draw(self._share if self._workers > 1 else 0.0, text, self._left(None))

    def update(self, word: Word) -> None:
        """Show a word from the runner."""
        self._estimate = word.estimate or self._estimate
        self._share, self._workers = min(word.share, word.workers), word.workers
        if word.phase != "timing" or time.monotonic() - self._drawn >= SECONDS_BETWEEN_FRAMES:
            self._draw(self._share, word.estimate or word.phase, self._left(word.seconds_left))

    def at(self, case: Case | None) -> None:
        """Which case it is shows in the phases."""

    def next(self) -> None:
        """One comparison is finished."""
        if self._estimate and not self._bar:
            self._line(self._estimate, _clock(time.monotonic() - self._began_this) if self._workers == 1 else "")
        self._done += 1
        self._estimate = ""
        self._began_this = time.monotonic()

    def _left(self, here: float | None) -> float | None:
        """Seconds to the end of the sweep: `here` and the comparisons to come, which take as long as those before; of
        several workers, at the pace of all so far."""
        spent = time.monotonic() - self._began_this
        if self._workers > 1:
            done = self._done + self._share
            return (time.monotonic() - self._begun) * (self._comparisons - done) / done if done else None
        if self._done:
            each = (self._began_this - self._begun) / self._done
            here = max(each - spent, 0.0) if here is None else here
        elif here is None:
            return None
        else:
            each = spent + here
        return here + each * (self._comparisons - self._done - 1)

    def _draw(self, share: float, text: str, left: float | None) -> None:
        shown = "" if left is None else f"about {_clock(left)} left"
        waited = time.monotonic() - self._said >= SECONDS_BETWEEN_LINES
        if self._verbose or (waited and not self._bar):
            self._line(text, shown)
        if self._bar is None or self._task is None:
            return
        text = self._numbered(text)
        completed = (self._done + share) / self._comparisons
        self._bar.update(self._task, description=text, completed=completed, left=shown)
        self._bar.refresh()
        self._drawn = time.monotonic()

    def _numbered(self, text: str) -> str:
        text = printable_line(text)
        if self._workers > 1:
            return f"{self._done} of {self._comparisons} done, {self._workers} at work: {text}"
        return text if self._comparisons == 1 else f"{self._done + 1}/{self._comparisons} {text}"

    def _line(self, text: str, time_of_it: str) -> None:
        """A plain line, above the bar where there is one."""
        line = " · ".join(filter(None, (self._numbered(text), time_of_it)))
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)
        self._said = time.monotonic()


def _rich_bar():  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
