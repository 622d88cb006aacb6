"""The two sides of a gate: a git worktree for a revision, its environment, and nothing left behind.

A side is a folder to run in and an interpreter to run with, whose own packages go first.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from repshift_cli.gate.process import Side, last_line, run, undisturbed
from repshift_cli.gate.verdict import NoBase, NothingMeasured
from repshift_cli.records import UsageError

GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "PYTHONSAFEPATH")
"""Variables that would lead git or Python away from the tree (a hook sets the first four)."""
PREFIX, LOCK = "repshift-gate-", "lock"
"""The temporary folder of a worktree, and the file in it that is locked as long as it is needed."""


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
    """The top of the checkout that `folder` is in; NoBase with git's words where there is none that git may use."""
    try:
        return Path(git("rev-parse", "--show-toplevel", folder=folder))
    except NoBase as error:
        said = str(error).removeprefix("no base: ")
        raise NoBase(f"no base: {folder} is in no git checkout to take another revision from ({said})") from error


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
    """The revision checked out in a temporary folder, which is gone afterwards, from git's list too.

    As long as this process lives it holds a lock there, by which others tell the folder from one that was left behind.
    """
    holder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    tree = holder / (top.name or "tree")
    try:
        with (holder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            git("-c", f"core.hooksPath={os.devnull}", "worktree", "add", "--detach", str(tree), commit, folder=top)
            yield tree
    finally:
        with undisturbed():
            shutil.rmtree(holder, ignore_errors=True)
            with contextlib.suppress(NoBase):
                git("worktree", "prune", folder=top)


def tidy(top: Path) -> list[Path]:
    """Remove the worktrees that gates of this repository left when they were killed; which these were."""
    listed = git("worktree", "list", "--porcelain", folder=top).splitlines()
    holders = [Path(line.removeprefix("worktree ")).parent for line in listed if line.startswith("worktree ")]
    left = [holder for holder in holders if holder.name.startswith(PREFIX) and _is_abandoned(holder)]
    for holder in left:
        shutil.rmtree(holder, ignore_errors=True)
    git("worktree", "prune", folder=top)
    return left


def _is_abandoned(holder: Path) -> bool:
    """Whether nobody holds the lock of a worktree's folder any more."""
    try:
        with (holder / LOCK).open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
