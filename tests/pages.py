"""The Markdown pages of this repository, and what stands in them for a shell, for a file and for a reader.

A block that is marked `sh` is run, line by line. One marked `console` shows commands behind a `$` that need a GPU, a
repository or an hour: their options are checked, they are not run. A block whose first line is a comment with a file's
name (`# mine.py`) is that file. One marked `text exact` is printed by a command of its page, word for word.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from repshift_cli.cli import run as run_repshift

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^(?P<indent> *)```(?P<kind>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
NEEDS_REAL_INPUT = "real/"


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its blocks of code."""
        return FENCE.sub("", self.text)

    def blocks(self, kind: str) -> list[str]:
        return [m["body"] for m in FENCE.finditer(self.text) if m["kind"] == kind]

    def commands(self) -> list[str]:
        """What is run here, in its order."""
        lines = [line.strip() for block in self.blocks("sh") for line in block.splitlines() if line.strip()]
        return [line for line in lines if NEEDS_REAL_INPUT not in line and not line.endswith(" real")]

    def commands_on_real_input(self) -> list[str]:
        """What is run where real weights and photos are, in its order."""
        lines = [line.strip() for block in self.blocks("sh") for line in block.splitlines() if line.strip()]
        return [line for line in lines if NEEDS_REAL_INPUT in line or line.endswith(" real")]

    def shown(self) -> list[str]:
        """What is shown and not run."""
        lines = [line for block in self.blocks("console") for line in block.splitlines() if line.startswith("$ ")]
        return [line[2:].partition("  #")[0].strip() for line in lines]

    def files(self) -> dict[str, str]:
        """The files that it holds, by name."""
        named = [(re.match(r"# ([\w.]+\.(?:py|toml))", m["body"]), m["body"]) for m in FENCE.finditer(self.text)]
        return {match[1]: body for match, body in named if match}


def _all_pages() -> dict[str, Page]:
    listing = ["git", "ls-files", "-co", "--exclude-standard", "*.md"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return {name: Page(ROOT / name) for name in sorted(names) if (ROOT / name).exists()}


PAGES = _all_pages()


def sections(page: Page) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@dataclass(frozen=True)
class Done:
    """A command line that has run: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run(command: str, folder: Path, columns: int = 80) -> Done:
    """Run a page's command in a folder: `repshift` in this process, which has its imports already."""
    words = shlex.split(command)
    return _here(words[1:], folder, columns) if words[0] == "repshift" else in_a_process(command, folder, columns)


def _here(arguments: list[str], folder: Path, columns: int) -> Done:
    out, err = io.StringIO(), io.StringIO()
    before, width = Path.cwd(), os.environ.get("COLUMNS")
    os.chdir(folder)
    os.environ["COLUMNS"] = str(columns)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_repshift(arguments, debug=False)
    finally:
        os.chdir(before)
        os.environ.pop("COLUMNS")
        os.environ |= {} if width is None else {"COLUMNS": width}
    return Done(code, out.getvalue(), err.getvalue())


def in_a_process(command: str, folder: Path, columns: int = 80) -> Done:
    """Run a page's command as a user does, in a process of its own."""
    words = shlex.split(command)
    start = {"repshift": [sys.executable, "-m", "repshift_cli"], "python": [sys.executable]}[words[0]]
    env = {**os.environ, "COLUMNS": str(columns), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run([*start, *words[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    return Done(done.returncode, done.stdout, done.stderr)
