"""The progress bar of a sweep: on stderr, and only where a person is watching."""

from __future__ import annotations

import sys
from types import TracebackType

from repshift_cli.records import Progress as Word


class Bar:
    """One bar over all comparisons, with the live estimate and the time left; silent where stderr is no terminal."""

    def __init__(self, comparisons: int) -> None:
        self._comparisons = max(comparisons, 1)
        self._done = 0
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
        if self._bar and self._task is not None:
            self._bar.update(self._task, description=self._numbered(text))

    def update(self, word: Word) -> None:
        """Show a word from the runner."""
        if self._bar is None or self._task is None:
            return
        left = "" if word.seconds_left is None else f"about {_clock(word.seconds_left)} left"
        if self._comparisons > 1 and left:
            left += " here"
        share = (self._done + min(word.share, 1.0)) / self._comparisons
        text = self._numbered(word.estimate or word.phase)
        self._bar.update(self._task, description=text, completed=share, left=left)

    def next(self) -> None:
        """One comparison is finished."""
        self._done += 1

    def _numbered(self, text: str) -> str:
        return text if self._comparisons == 1 else f"{self._done + 1}/{self._comparisons} {text}"


def _rich_bar():  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
