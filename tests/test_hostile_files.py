"""Files that nobody should have written: each gives a table or a sentence, never a traceback, never a hostile byte."""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from mutants import TEXTS, mutate, spoiled
from test_chrome_trace import two_variants

from repshift_cli import cli
from repshift_cli.profiling import chrome_trace, digest
from repshift_cli.records import UsageError

DATA = Path(__file__).parent / "data"
RUNS = ("run-schema-1.json", "run-schema-2.json", "run-schema-3.json")
COMMANDS = (
    ("show", "FILE"),
    ("show", "FILE", "--csv", "-"),
    ("show", "FILE", "--json", "-"),
    ("show", "FILE", "--markdown", "-"),
    ("show", "FILE", "--traffic"),
    ("compare", "GOOD", "FILE", "--across"),
    ("compare", "FILE", "FILE"),
    ("history", "FILE", "GOOD"),
    ("export", "FILE", "--format", "bencher"),
    ("export", "FILE", "--format", "github-action-benchmark"),
)
OF_PROFILES = (
    ("show", "FILE"),
    ("show", "FILE", "--by", "layer", "--diff"),
    ("show", "FILE", "--by", "kernel"),
    ("show", "FILE", "--csv", "-"),
    ("show", "FILE", "--markdown", "-"),
)
HOSTILE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]|^::", re.MULTILINE)
"""Control characters, and the beginning of a line that GitHub takes for a command."""


def smaller(document: Any) -> Any:
    """The run with three records and few samples, so that a mutation more often meets what is read."""
    if "records" in document:
        document["records"] = document["records"][:3]
        document["planned"] = document["planned"][:3]
    return document


def check(command: tuple[str, ...], file: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with how the command took the file, or None."""
    try:
        code = cli.run([{"FILE": str(file), "GOOD": str(good)}.get(word, word) for word in command], False)
    except Exception as error:
        return f"{type(error).__name__} passed through: {error}"[:300]
    out, said = capsys.readouterr()
    if code not in (0, 1, 2, 3, 4, 5):
        return f"exit code {code}"
    if "internal error" in said or "Traceback" in said:
        return said.strip().splitlines()[-1][:300]
    if "\ud800" in out or (found := HOSTILE.search(out)):
        return (
            f"hostile in the output: {out[max(0, found.start() - 30) : found.end() + 10]!r}" if found else "surrogate"
        )
    return None


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_mutants_give_a_table_or_a_sentence(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], mutants: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)
    documents = [(smaller(json.loads((DATA / name).read_text("utf-8"))), COMMANDS) for name in RUNS]
    documents += [(json.loads(f.read_text("utf-8")), OF_PROFILES) for f in sorted(DATA.glob("profile-schema-*.json"))]
    good, file = DATA / RUNS[-1], tmp_path / "mutant.json"
    wrong: dict[str, str] = {}
    for number in range(mutants // 4):
        document, commands = rng.choice(documents)
        if rng.random() < 0.2:
            file.write_bytes(spoiled(json.dumps(document).encode(), rng))
        else:
            file.write_text(json.dumps(mutate(document, rng)), encoding="utf-8")
        command = rng.choice(commands)
        if (trouble := check(command, file, good, capsys)) and trouble not in wrong:
            wrong[trouble] = f"mutant {number} of seed {seed}: {' '.join(command)}"
            if keep := os.environ.get("REPSHIFT_KEEP_MUTANTS"):
                (Path(keep) / f"{seed}-{number}.json").write_bytes(file.read_bytes())
    assert not wrong, "\n".join(f"{where}: {what}" for what, where in wrong.items())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_mutated_traces_give_a_table_or_a_sentence(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], mutants: int
) -> None:
    rng = random.Random(seed)
    run, recorded = two_variants(tmp_path)
    chrome_trace.write(tmp_path / "ours.json", recorded, digest.metadata(run))
    documents = [json.loads((tmp_path / name).read_text("utf-8")) for name in ("ours.json", "0.json")]
    file, wrong = tmp_path / "mutant.json", dict[str, str]()
    for number in range(mutants // 10):
        document = rng.choice(documents)
        if rng.random() < 0.2:
            file.write_bytes(spoiled(json.dumps(document).encode(), rng))
        else:
            file.write_text(json.dumps(mutate(document, rng)), encoding="utf-8")
        command = ("profile", "--read", "FILE", *rng.choice(((), ("--by", "op"), ("--csv", "-"), ("--diff",))))
        if trouble := check(command, file, file, capsys) or written_again(file, tmp_path / "again.json"):
            wrong.setdefault(trouble, f"mutant {number} of seed {seed}: {' '.join(command)}")
    assert not wrong, "\n".join(f"{where}: {what}" for what, where in wrong.items())


def written_again(file: Path, target: Path) -> str | None:
    """What is wrong with how the file is written for the viewers, or None."""
    try:
        chrome_trace.write(target, [chrome_trace.Recorded("v", file, 0)], {})
        chrome_trace.write_for_tensorboard(target, chrome_trace.Recorded("v", file, 0))
    except UsageError:
        return None
    except Exception as error:
        return f"{type(error).__name__} passed through: {error}"[:300]
    return None


# --- option values ----------------------------------------------------------------------------------------------------

NUMERALS = ("-1", "0", "1e999999999", "9" * 5000, "1:1e9:1", ",", ":", "::", "0.5:", "٣", "½", "1,1,1", "cpu:9", "-")
HOSTILE_VALUES = ("a" * 300, *NUMERALS, *(text for text in TEXTS if text not in ("\x00", "\ud800")))
"""NUL and a lone surrogate cannot come from a shell."""
FREE_OPTIONS = {"--help", "--resume", "--out", "--memory-snapshot", "--on", "--install-completion", "--show-completion"}
"""What ends early, writes a file, or goes elsewhere."""


@pytest.mark.slow
def test_option_values_give_a_list_or_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mutants: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of `bench --dry-run`, each with values that nobody should type."""
    monkeypatch.chdir(tmp_path)
    bench = typer.main.get_command(cli.app).commands["bench"]  # type: ignore[attr-defined]
    taking = [o for p in bench.params if not getattr(p, "is_flag", False) for o in p.opts if o.startswith("--")]
    pairs = [(name, value) for name in sorted({*taking} - FREE_OPTIONS) for value in HOSTILE_VALUES]
    assert len(pairs) > 300
    wrong: dict[str, str] = {}
    for name, value in random.Random(0).sample(pairs, min(len(pairs), mutants // 6)):
        command = ("bench", "--dry-run", *(() if name == "--model" else ("--model", "vit_t")), f"{name}={value}")
        if trouble := check(command, tmp_path, tmp_path, capsys):
            wrong.setdefault(trouble, f"{name}={value[:40]!r}")
    assert not wrong, "\n".join(f"{where}: {what}" for what, where in wrong.items())


# --- files that are no files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("show", "FILE"),
        ("compare", "FILE", "FILE"),
        ("history", "FILE"),
        ("bench", "--resume", "FILE"),
        ("profile", "--read", "FILE"),
        ("bench", "--profile", "FILE", "--dry-run"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "a name of 300 characters"])
def test_what_is_no_regular_file_is_refused_at_once(
    command: tuple[str, ...], kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = {"device": Path("/dev/zero"), "folder": tmp_path}.get(kind, tmp_path / "pipe.json")
    if kind == "pipe":
        os.mkfifo(file)
    if kind.startswith("a name"):
        file = tmp_path / ("x" * 300)
    assert cli.run([str(file) if word == "FILE" else word for word in command], False) == 2
    assert "internal error" not in capsys.readouterr().err


def test_a_folder_with_a_pipe_and_a_damaged_file_in_it_has_its_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "good.json").write_bytes((DATA / RUNS[-1]).read_bytes())
    assert cli.run(["history", str(tmp_path)], False) == 0
    out = capsys.readouterr().out
    assert "pipe.json" in out and "damaged.json" in out and "latency" in out


def test_more_than_a_gibibyte_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**30 + 1)
    assert cli.run(["show", str(tmp_path / "large.json")], False) == 2
    assert "1.0 GiB" in capsys.readouterr().err
