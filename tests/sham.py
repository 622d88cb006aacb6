"""A repository with a `repshift_cli` of its own that measures nothing: it writes the run file that lies in its tree.

So that gates run on real revisions, worktrees and processes in milliseconds and with exact times: `factor.txt` makes
every latency longer, `template.json` is the run, `mood.txt` makes it refuse, hang or fall over: `dies` in every round,
`dies-once` in the first, `segv` before it writes a run, `helpless` when it is asked for help, `wanders` by an output
that differs from process to process, `turns` makes it come for its turns, and `dies-in-turn` die in the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from synthetic import CPU, ON_CPU, ran

from repshift_cli.cli import run as run_repshift
from repshift_cli.records import Case, Record, Run
from repshift_cli.records.json_codec import to_plain

ROOT = Path(__file__).parent.parent
FLASH = dataclasses.replace(ON_CPU, attention="flash")
NEW = dataclasses.replace(ON_CPU, attention="efficient")

MAIN = """
import json, os, random, subprocess, sys, time, tomllib
def argument(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default
mood = open("mood.txt").read().split()
if "--help" in sys.argv:
    if "helpless" in mood:
        raise AttributeError("no help")
    print("Usage: --timing-only --case-timeout" if "old" not in mood else "Usage:")
    sys.exit()
with open(os.environ.get("SHAM_LOG", os.devnull), "a") as log:
    print(os.path.basename(argument("--out")), os.getcwd(), *sys.argv[1:], file=log)
if "hang" in mood and "--timing-only" in sys.argv:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print("hanging", os.getpid(), child.pid, file=open(os.environ["SHAM_LOG"], "a"))
    time.sleep(600)
options = tomllib.load(open(argument("--profile"), "rb"))
variants = options["operator"] if sys.argv[1] == "operators" else options["variant"]
for word in mood:
    if word.startswith("lacks=") and word[6:] in variants:
        print(f"error: unknown attention back end '{word[6:]}'", file=sys.stderr)
        sys.exit(2)
if "segv" in mood:
    os.kill(os.getpid(), 11)
if "--timing-only" in sys.argv and ("dies" in mood or ("dies-once" in mood and not os.path.exists("died"))):
    open("died", "w").close()
    sys.exit("CUDA error: an illegal memory access was encountered")
if "--dry-run" in sys.argv:
    sys.exit()
if "turns" in mood and "REPSHIFT_TURNS" in os.environ:
    import socket
    port, _, key = os.environ["REPSHIFT_TURNS"].partition(":")
    seat = socket.create_connection(("127.0.0.1", int(port)))
    seat.sendall(bytes.fromhex(key))
    for word in (b"t", b"t", b"x"):
        seat.sendall(word)
        assert seat.recv(1) == b"g"
        with open(os.environ.get("SHAM_LOG", os.devnull), "a") as log:
            print("turn" if word == b"t" else "through", os.path.basename(argument("--out")), file=log)
        if "dies-in-turn" in mood and "--timing-only" in sys.argv:
            sys.exit("it died in its turn")
run = json.load(open("template.json"))
factor = float(open("factor.txt").read()) * (1 + (0 if "numb" in mood else float(argument("--delay", 0))))
for record in run["records"]:
    for m in record["measurements"]:
        if m["source"] == "timed":
            scale = factor if m["better"] == "lower" else 1 / factor
            scale *= random.uniform(0.999, 1.001)
            m["samples"] = [s * scale for s in m["samples"]]
for record in run["records"]:
    if "wanders" in mood:
        record["output"]["sketch"] = [random.random() for _ in range(8)]
run["records"] = [r for r in run["records"] if r["case"]["attention"] in variants]
json.dump(run, open(argument("--out"), "w"))
"""

PROFILE = """title = "sham"
model = "vit_b"
variant = {variants}
[thresholds]
rounds = 8
most-rounds = 10
latency = 0.01
macs = 0
"""


def template(*cases: Case, machine: object = CPU, schema: int = 1) -> str:
    """A run file with these cases measured."""
    records = tuple(ran(case, 10.0, 20.0, 10.0) for case in cases)
    return json.dumps(
        to_plain(Run(machine, {}, cases, records, created="2026-11-22T05:12:00+00:00", tool="sham"))
        | {"schema": schema}
    )  # type: ignore[arg-type]


def with_record(text: str, record: Record) -> str:
    """The run file with one more record."""
    run = json.loads(text)
    return json.dumps(run | {"records": [*run["records"], to_plain(record)]})


class Repository:
    """The sham's repository in a folder; files are written, then committed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "repshift_cli").mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        variants = json.dumps(["flash", "efficient"])
        self.write(
            {
                "repshift_cli/__init__.py": "",
                "repshift_cli/__main__.py": MAIN,
                "gate.toml": PROFILE.format(variants=variants),
                "template.json": template(FLASH, NEW),
                "factor.txt": "1.0",
                "mood.txt": "",
                ".gitignore": "__pycache__/\nrepshift-runs/\ndied\n",
            }
        )
        self.commit("one")

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout.strip()

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(text, encoding="utf-8")

    def commit(self, message: str) -> str:
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`repshift gate` of this checkout, started in the repository."""
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from repshift_cli.cli import main; main()"
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code, "gate", "--profile", "gate.toml", *arguments],
            cwd=self.folder,
            env=os.environ | {"COLUMNS": "120"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def gate(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a gate in this process; what it measures are processes all the same."""
        out, error, before, kept = io.StringIO(), io.StringIO(), Path.cwd(), dict(os.environ)
        os.chdir(self.folder)
        os.environ.update({"COLUMNS": "120"} | environment)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
                code = run_repshift(["gate", "--profile", "gate.toml", *arguments], debug=False)
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ.update(kept)
        return code, out.getvalue(), error.getvalue()

    def worktrees(self) -> int:
        return len(self.git("worktree", "list").splitlines())

    @property
    def is_tidy(self) -> bool:
        """Whether a gate has left neither a worktree nor a temporary folder."""
        return self.worktrees() == 1 and not list(Path(tempfile.gettempdir()).iterdir())


def last(text: str) -> str:
    """The last line."""
    return text.splitlines()[-1]
