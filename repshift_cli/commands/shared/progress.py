"""The progress bar of a sweep: on stderr, and only where a person is watching."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from repshift_cli.records import Case, printable_line
from repshift_cli.records import Progress as Word

SECONDS_BETWEEN_FRAMES = 0.2


class Bar:
    """One bar over all comparisons, with the live estimate and the time left; silent where stderr is no terminal.

    It is drawn only when the runner speaks, which is between the timed regions: a thread that draws would be timed.
    """

    def __init__(self, comparisons: int) -> None:
        self._comparisons = max(comparisons, 1)
        self._done = 0
        self._begun = self._began_this = time.monotonic()
        self._drawn = 0.0
        self._bar = _rich_bar() if sys.stderr.isatty() else None
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
        self._draw(0.0, text, self._left(None))

    def update(self, word: Word) -> None:
        """Show a word from the runner."""
        if word.phase != "timing" or time.monotonic() - self._drawn >= SECONDS_BETWEEN_FRAMES:
            self._draw(min(word.share, 1.0), word.estimate or word.phase, self._left(word.seconds_left))

    def at(self, case: Case | None) -> None:
        """Which case it is shows in the phases."""

    def next(self) -> None:
        """One comparison is finished."""
        self._done += 1
        self._began_this = time.monotonic()

    def _left(self, here: float | None) -> float | None:
        """Seconds to the end of the sweep: `here` and the comparisons to come, which take as long as those before."""
        spent = time.monotonic() - self._began_this
        if self._done:
            each = (self._began_this - self._begun) / self._done
            here = max(each - spent, 0.0) if here is None else here
        elif here is None:
            return None
        else:
            each = spent + here
        return here + each * (self._comparisons - self._done - 1)

    def _draw(self, share: float, text: str, left: float | None) -> None:
        if self._bar is None or self._task is None:
            return
        text = printable_line(text)
        text = text if self._comparisons == 1 else f"{self._done + 1}/{self._comparisons} {text}"
        completed = (self._done + share) / self._comparisons
        shown = "" if left is None else f"about {_clock(left)} left"
        self._bar.update(self._task, description=text, completed=completed, left=shown)
        self._bar.refresh()
        self._drawn = time.monotonic()


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
