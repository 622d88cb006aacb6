"""The two sides of a gate: a git worktree for a revision, a fresh process for every round, and nothing left behind.

A side is a folder to run in and an interpreter to run with. Its process is `python -m repshift_cli bench` started in
that folder, whose own packages go first; what comes back is a run file. Standard library, records and store only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from repshift_cli import store
from repshift_cli.gate import NoBase, NothingMeasured
from repshift_cli.records import Run, UsageError

GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "PYTHONSAFEPATH")
"""Variables that would lead git or Python away from the tree (a hook sets the first four)."""

TIMEOUT = 3600.0
"""Seconds after which a measuring process is taken for hung."""

GRACE = 5.0
"""Seconds between asking a process to end and ending it."""

USAGE = 2


@dataclass(frozen=True)
class Side:
    """One side: its name, what it is in words, the tree, the folder to run in, the interpreter."""

    name: str
    words: str
    tree: Path
    folder: Path
    python: str
    environment: Mapping[str, str]
    extra: tuple[str, ...] = ()


# --- signals and processes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like an exception, so that what it holds is cleaned up."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handled = [s for s in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if s is not None]
    before = {s: signal.signal(s, stop) for s in handled}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait while something is cleaned up: a second Ctrl-C does not leave half of it behind."""
    held = [s for s in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)) if s is not None]
    before = {s: signal.signal(s, signal.SIG_IGN) for s in held}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def run(command: Sequence[str] | str, folder: Path, environment: Mapping[str, str], log: Path) -> int:
    """The exit code of a command whose output goes to `log`; however this ends, it and its children are gone."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            command,
            shell=isinstance(command, str),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise NothingMeasured(f"{_shown(command)} was still running after {TIMEOUT / 60:.0f} minutes") from error
        finally:
            with undisturbed():
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process's whole group: asked first, then forced."""
    for number, grace in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)


def _shown(command: Sequence[str] | str) -> str:
    return command if isinstance(command, str) else shlex.join(command)


# --- git --------------------------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """This process's environment without what would lead a child away from its tree."""
    return {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}


def git(*arguments: str, folder: Path) -> str:
    """What git prints; NoBase with its own words where it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment(), capture_output=True, text=True, check=True
        )
    except FileNotFoundError as error:
        raise NoBase("no base: git is not installed") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"exit code {error.returncode}"
        raise NoBase(f"no base: git {arguments[0]}: {said}") from error
    return done.stdout.strip()


def repository(folder: Path) -> Path:
    """The top of the checkout that `folder` is in; NoBase where there is none."""
    try:
        return Path(git("rev-parse", "--show-toplevel", folder=folder))
    except NoBase as error:
        raise NoBase(f"no base: {folder} is in no git checkout, so there is no other revision to measure") from error


def commit_of(ref: str, top: Path) -> str:
    """The commit that `ref` names; NoBase with a way on where there is none."""
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", folder=top)
    except NoBase as error:
        shallow = git("rev-parse", "--is-shallow-repository", folder=top) == "true"
        cure = "the clone is shallow: git fetch --unshallow (fetch-depth: 0 in CI)" if shallow else "git fetch may help"
        raise NoBase(f"no base: {ref!r} names no commit here; {cure}") from error


def state_of(top: Path) -> str:
    """The checked-out commit in words: `the working tree at 3f2c1ab, with uncommitted changes`."""
    words = f"the working tree at {git('rev-parse', '--short', 'HEAD', folder=top)}"
    dirty = git("status", "--porcelain", "--untracked-files=no", folder=top)
    return f"{words}, with uncommitted changes" if dirty else words


@contextlib.contextmanager
def worktree(top: Path, commit: str) -> Iterator[Path]:
    """The revision checked out in a temporary folder, which is gone afterwards, from git's list too."""
    holder = Path(tempfile.mkdtemp(prefix="repshift-gate-")).resolve()
    tree = holder / (top.name or "tree")
    try:
        git("-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", str(tree), commit, folder=top)
        yield tree
    finally:
        with undisturbed():
            shutil.rmtree(holder, ignore_errors=True)
            with contextlib.suppress(NoBase):
                git("worktree", "prune", folder=top)


# --- one side ---------------------------------------------------------------------------------------------------------


def make(name: str, words: str, tree: Path, inside: Path, python: str, top: Path) -> Side:
    """A side in `tree`, to run in the folder `inside` it."""
    folder = tree / inside
    if not folder.is_dir():
        raise NoBase(f"no base: {words} has no folder {inside}")
    return Side(name, words, tree, folder, python, _environment(tree, top))


def with_python(side: Side) -> Side:
    """The side with its interpreter found: a path within its tree goes first, where `--setup` makes one."""
    given = side.python
    own = side.folder / given
    python = str(own) if os.sep in given and own.exists() else shutil.which(given)
    if python is None:
        raise UsageError(f"--{side.name}-python: {given} is no program, neither here nor in the tree of {side.words}")
    return replace(side, python=os.path.abspath(python))


def _environment(tree: Path, top: Path) -> dict[str, str]:
    """The tree's own packages first: its `src` where it has one, and the search path turned from `top` to the tree."""
    path = [str(tree / "src")] if (tree / "src").is_dir() else []
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        place = Path(entry).absolute()
        path.append(str(tree / place.relative_to(top)) if place.is_relative_to(top) else entry)
    return environment() | {"PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0"}


def set_up(side: Side, command: str, log: Path) -> None:
    """Run the user's command that builds a tree; NothingMeasured with its last line where it fails."""
    code = run(command, side.folder, side.environment, log)
    if code:
        raise NothingMeasured(
            f"nothing measured: --setup failed on {side.name} with exit code {code}: {last_line(log)}"
        )


def origins(side: Side, packages: Sequence[str]) -> dict[str, str | None]:
    """Where the side's interpreter would import each package from, without importing it."""
    code = (
        "import importlib.util as u, json, sys; sys.path.insert(0, '');"
        "f = lambda s: s and (s.origin or next(iter(s.submodule_search_locations or []), None));"
        "print(json.dumps({n: f(u.find_spec(n)) for n in sys.argv[1:]}))"
    )
    done = subprocess.run(
        [side.python, "-c", code, *packages],
        cwd=side.folder,
        env=dict(side.environment),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise NoBase(f"environment mismatch: {side.python} does not run: {' '.join(done.stderr.split())[-200:]}")
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def bench(side: Side, arguments: Sequence[str], out: Path) -> tuple[int, Run | None]:
    """One fresh process that measures: its exit code and its run, where it wrote one. The log lies beside it."""
    command = [side.python, "-m", "repshift_cli", "bench", *arguments, "--out", str(out), *side.extra]
    code = run(command, side.folder, side.environment, out.with_suffix(".log"))
    return code, store.load(out) if out.exists() else None


def last_line(log: Path) -> str:
    """The last line that is not empty of what a process wrote."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def toml(options: Mapping[str, Any], title: str) -> str:
    """Options as a profile's text: JSON's strings, numbers, booleans and lists are TOML's too."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in options.items() if value is not None]
    return "\n".join([f"title = {json.dumps(title)}", *lines]) + "\n"
