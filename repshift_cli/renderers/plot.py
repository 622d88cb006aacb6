"""Charts in the terminal, in its width: bars with intervals, scatter plots, time by block, the raw rounds.

Drawn here with Rich, not by plotext, which has neither intervals on lying bars nor plain ASCII.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.text import Text

from repshift_cli.analysis.stats import round_medians
from repshift_cli.records import printable_line
from repshift_cli.renderers import Document
from repshift_cli.renderers.figures.of_document import first_of
from repshift_cli.renderers.figures.shapes import (
    Bars,
    Figure,
    Heat,
    Mark,
    Plane,
    Sampled,
    Samples,
    Stacks,
    drift,
    number,
    shortened,
)
from repshift_cli.renderers.page.scales import Scale, fitting, from_zero
from repshift_cli.renderers.table import console_for

TAKES = ("run", "profile", "inspection", "tuning", "gate", "history", "comparison")
SUFFIX = ".txt"
OPTION = False

WIDEST, NARROWEST = 120, 20
"""Columns of a chart where a pipe has no width, and the fewest that one needs."""
ROWS = 14
"""Lines of a scatter plot."""
MOST_BLOCKS = 3
"""Variants whose blocks are drawn one by one."""
COLOURS = ("blue", "dark_orange", "green", "magenta", "yellow", "cyan", "red", "bright_black")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Signs(NamedTuple):
    """What charts are drawn with: a bar up to its interval, within it below and above the value, a value to compare
    with, points by group, the steps of a sparkline, the shades of a map."""

    bar: str
    below: str
    above: str
    even: str
    points: str
    sparks: str
    side: str
    floor: str
    dash: str
    gap: str
    shades: str


UNICODE = Signs("█", "▓", "░", "┊", "●■▲◆○□△◇", "▁▂▃▄▅▆▇█", "│", "─", "–", "…", "·░▒▓█")
ASCII = Signs("#", "=", "-", "|", "ox+*@%&$", "_.-=+*%#", "|", "-", "-", "~", ".:=*#")


@dataclass(frozen=True)
class Paper:
    """The columns that there are, and the signs that may be used."""

    width: int
    signs: Signs


def render(document: Document, out: TextIO, console: Console | None = None) -> None:
    """Print the charts one below the other; a console given is used as it is."""
    console = console or console_for(out)
    paper = Paper(max(NARROWEST, min(console.width, WIDEST)), UNICODE if is_unicode(console) else ASCII)
    blocks = 0
    for figure in first_of(document):
        upright = isinstance(figure, Stacks) and figure.upright
        blocks += upright
        if upright and blocks > MOST_BLOCKS:
            continue
        console.print()
        console.print(Text(_plain(figure.title, paper), "bold"))
        for line in drawn(figure, paper):
            line.truncate(paper.width)
            console.print(line, soft_wrap=True)


def is_unicode(console: Console) -> bool:
    """Whether the locale that is set, and the encoding of the output, hold more than ASCII."""
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "UTF-8")
    return "utf" in locale.lower() and console.encoding.lower().startswith("utf")


def drawn(figure: Figure, paper: Paper) -> Iterator[Text]:
    """The lines of a figure."""
    if isinstance(figure, Bars):
        yield from _bars(figure, paper)
    elif isinstance(figure, Plane):
        yield from _plane(figure, paper)
    elif isinstance(figure, Stacks):
        yield from _stacks(figure, paper)
    elif isinstance(figure, Samples):
        yield from _samples(figure, paper)
    else:
        yield from _heat(figure, paper)


# --- bars -------------------------------------------------------------------------------------------------------------


def _bars(figure: Bars, paper: Paper) -> Iterator[Text]:
    told = [_plain(m.short(figure.axis.unit, paper.signs.dash), paper) for m in figure.marks]
    labels, room, told = _shares([m.label for m in figure.marks], told, paper)
    reach = [v for m in figure.marks for v in (m.value, m.low, m.high) if v is not None]
    scale = from_zero([*reach, *figure.lines], figure.zero, 0.0, float(room))
    styles = _styles(m.group for m in figure.marks)
    for m, label, words in zip(figure.marks, labels, told, strict=True):
        bar = "".join(_in_column(i, m, figure, scale, paper.signs) for i in range(room))
        yield Text(f"{label} ").append(bar, styles.get(m.group, "")).append(f" {words}", "dim")


def _in_column(column: int, m: Mark, figure: Bars, scale: Scale, signs: Signs) -> str:
    """What stands in one column of a bar."""
    at = column + 0.5
    start, end = sorted((scale(figure.zero), scale(m.value)))
    low, high = (scale(m.value if v is None else v) for v in (m.low, m.high))
    if low <= at <= high or (m.low is not None and int(scale(m.value)) == column):
        return signs.below if start <= at <= end else signs.above
    if start <= at <= end:
        return signs.bar
    return signs.even if any(int(scale(v)) == column for v in figure.lines) else " "


def _shares(labels: Sequence[str], told: Sequence[str], paper: Paper) -> tuple[list[str], int, list[str]]:
    """The labels in one width, the columns that are left for bars, and the figures, left out where nothing is left."""
    wide = min(max(map(len, labels), default=0), max(8, paper.width * 2 // 5))
    values = max(map(len, told), default=0)
    room = paper.width - wide - values - 2
    if room < NARROWEST // 2:
        return [_padded(label, wide, paper) for label in labels], max(1, paper.width - wide - 2), [""] * len(told)
    return [_padded(label, wide, paper) for label in labels], room, list(told)


def _padded(label: str, wide: int, paper: Paper) -> str:
    return shortened(_plain(label, paper), wide, paper.signs.gap).rjust(wide)


def _styles(groups: Iterable[str]) -> dict[str, str]:
    """A colour for each group; the text says all without it."""
    known = dict.fromkeys(g for g in groups if g)
    return {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(known)}


def _plain(text: str, paper: Paper) -> str:
    """The text on one line; in ASCII where that is all there is."""
    shown = printable_line(text)
    return shown if paper.signs is UNICODE else shown.encode("ascii", "replace").decode()


# --- points and curves ------------------------------------------------------------------------------------------------


def _plane(figure: Plane, paper: Paper) -> Iterator[Text]:
    """A grid of characters with the axes' ends, the places where levels change as columns, and a legend."""
    marks = [(p.x.value, p.y.value, p.x.group) for p in figure.points]
    marks += [(x, y, c.group) for c in figure.curves if c.group for x, y in c.points]
    if not marks:
        return
    left = 9
    x = fitting([m[0] for m in marks], 0.0, paper.width - left - 2.0, figure.x.log)
    y = fitting([m[1] for m in marks], ROWS - 1.0, 0.0, figure.y.log)
    styles = _styles(m[2] for m in marks)
    signs = {group: paper.signs.points[i % len(paper.signs.points)] for i, group in enumerate(styles)}
    grid: dict[tuple[int, int], tuple[str, str]] = {}
    for at in (at for c in figure.curves for at in c.marks):
        grid |= {(round(x(at)), row): (paper.signs.even, "") for row in range(ROWS)}
    grid |= {(round(x(a)), round(y(b))): (signs.get(g, "."), styles.get(g, "")) for a, b, g in marks}
    yield Text(f"{'':{left}}{_plain(figure.y.words, paper)}", "dim")
    for row in range(ROWS):
        value = y.high if row == 0 else y.low if row == ROWS - 1 else None
        line = Text(f"{'' if value is None else number(value, 3):>{left - 1}}{paper.signs.side}")
        for column in range(paper.width - left):
            line.append(*grid.get((column, row), (" ", "")))
        yield line
    yield Text(" " * (left - 1) + paper.signs.floor * (paper.width - left))
    ends = [figure.place(round(v)) if figure.ticks else number(v, 3) for v in (x.low, x.high)]
    middle = _plain(figure.x.words, paper).center(max(0, paper.width - left - sum(map(len, ends))))
    yield Text(f"{'':{left}}{ends[0]}{middle}{ends[1]}", "dim")
    yield from (Text(f"{'':{left}}{sign} {_plain(group, paper)}", styles[group]) for group, sign in signs.items())


# --- maps -------------------------------------------------------------------------------------------------------------


def _heat(figure: Heat, paper: Paper) -> Iterator[Text]:
    """A row for each of the map's: the deeper a shade, the higher its value, which stands beside it with room."""
    wide = min(max(map(len, (*figure.rows, figure.down))), paper.width // 3)
    room = paper.width - wide - 1
    longest = 2 + max((len(number(mark.value, 3)) for row in figure.cells for mark in row if mark), default=0)
    told = longest * len(figure.columns) <= room
    size = longest if told else max(1, room // len(figure.columns))
    every, shades = 1 if told else -(-len(figure.columns) // room), paper.signs.shades
    yield Text(_padded(figure.down, wide, paper) + f" {_plain(figure.across, paper)}", "dim")
    yield Text(f"{'':{wide}} " + _columns(figure.columns[::every], size, paper), "dim")
    for name, cells in zip(figure.rows, figure.cells, strict=True):
        line = Text(f"{_padded(name, wide, paper)} ")
        for mark in cells[::every]:
            place = int(figure.share(mark.value) * len(shades)) if mark else 0
            sign = shades[min(len(shades) - 1, place)]
            cell = f"{sign}{number(mark.value, 3)}" if mark and told else sign * size if mark else ""
            line.append(cell.ljust(size), "blue" if mark and not told else "")
        yield line
    low, high = (number(value, 3) for value in figure.reach)
    ends = f"{shades[0]} {low} to {shades[-1]} {high}{', by logarithms' if figure.axis.log else ''}"
    yield Text(f"{'':{wide}} {ends}{f', each {every}th {figure.across}' if every > 1 else ''}", "dim")


def _columns(names: Sequence[str], size: int, paper: Paper) -> str:
    """The names above their columns, as many as have room."""
    line, end = "", 0
    for i, name in enumerate(names):
        if size * i >= end:
            shown = shortened(_plain(name, paper), max(8, size - 1), paper.signs.gap)
            line, end = f"{line:{size * i}}{shown}", size * i + len(shown) + 1
    return line


# --- stacks -----------------------------------------------------------------------------------------------------------


def _stacks(figure: Stacks, paper: Paper) -> Iterator[Text]:
    """A bar for each stack, every part by its letter, and what the letters mean."""
    letters = {name: LETTERS[i % len(LETTERS)] for i, name in enumerate(figure.names)}
    told = [f"{number(stack.total)} {figure.axis.unit}" for stack in figure.stacks]
    labels, room, told = _shares([stack.label for stack in figure.stacks], told, paper)
    scale = from_zero([stack.total for stack in figure.stacks], 0.0, 0.0, float(room))
    styles = _styles(figure.names)
    for stack, label, words in zip(figure.stacks, labels, told, strict=True):
        line, low = Text(f"{label} "), 0.0
        for name, value in stack.parts:
            columns = round(scale(low + value)) - round(scale(low))
            line.append(letters[name] * columns, styles[name])
            low += value
        line.append(" " * (room - round(scale(low)) + 1) + words, "dim")
        yield line
    if len(letters) > 1:
        whole = sum(stack.total for stack in figure.stacks) or 1.0
        parts = {n: sum(dict(stack.parts).get(n, 0.0) for stack in figure.stacks) / whole for n in letters}
        for name, letter in letters.items():
            yield Text(f"  {letter} {_plain(name, paper)} {parts[name]:.0%}", styles[name])


# --- raw samples ------------------------------------------------------------------------------------------------------


def _samples(figure: Samples, paper: Paper) -> Iterator[Text]:
    """A sparkline of every case's rounds, from its lowest to its highest, and how the second half differs."""
    told = [_plain(_said(row, figure.axis.unit, paper), paper) for row in figure.rows]
    labels, room, told = _shares([row.label for row in figure.rows], told, paper)
    styles = _styles(row.group for row in figure.rows)
    for row, label, words in zip(figure.rows, labels, told, strict=True):
        rounds = _fitted(round_medians(row.values, row.per_round), room)
        low, high = min(rounds), max(rounds)
        steps = len(paper.signs.sparks)
        at = [min(steps - 1, int((v - low) / (high - low) * steps)) if high > low else 0 for v in rounds]
        line = "".join(paper.signs.sparks[i] for i in at).ljust(room)
        yield Text(f"{label} ").append(line, styles.get(row.group, "")).append(f" {words}", "dim")


def _said(row: Sampled, unit: str, paper: Paper) -> str:
    rounds = round_medians(row.values, row.per_round)
    return f"{number(min(rounds), 3)}{paper.signs.dash}{number(max(rounds), 3)} {unit}, drift {drift(rounds) - 1:+.1%}"


def _fitted(values: Sequence[float], room: int) -> list[float]:
    """The values, or means of neighbours where they are more than the columns."""
    if len(values) <= room:
        return list(values)
    edges = [round(i * len(values) / room) for i in range(room + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges) if b > a]
