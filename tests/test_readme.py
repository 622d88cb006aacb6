"""The README held against the program: its commands run in their order, its help text is what the program prints."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAIN = "repshift bench --model vit_b --keep 0.6"
NEEDS_REAL_INPUT = "real/"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line.strip()]


def run(command: str, folder: Path, columns: int = 80) -> "subprocess.CompletedProcess[str]":
    words = shlex.split(command)
    start = {"repshift": [sys.executable, "-m", "repshift_cli"], "python": [sys.executable]}[words[0]]
    env = {**os.environ, "COLUMNS": str(columns), "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.run(
        [*start, *words[1:]], cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's commands run: with its own-model example beside them."""
    place = tmp_path_factory.mktemp("readme")
    (example,) = blocks("python")
    (place / "mine.py").write_text(example, encoding="utf-8")
    return place


@pytest.mark.slow
def test_every_command_runs_in_order(folder: Path) -> None:
    plain = [command for command in commands() if NEEDS_REAL_INPUT not in command]
    assert len(plain) > 10
    for command in plain:
        done = run(command, folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_the_main_command_prints_its_three_variants(folder: Path) -> None:
    assert README.count(MAIN) >= 2
    done = run(MAIN, folder, columns=160)
    assert done.returncode == 0, done.stderr
    assert "197 → 119" in done.stdout
    for variant in ("vanilla", "flash", "flash+repshift"):
        assert re.search(rf"^{re.escape(variant)} ", done.stdout, flags=re.MULTILINE)


@pytest.mark.parametrize("command", ["repshift --help", "repshift bench --help"])
def test_the_help_text_is_the_programs(command: str, folder: Path) -> None:
    printed = "\n".join(line.rstrip() for line in run(command, folder).stdout.splitlines()).strip("\n")
    assert any(block.strip("\n") == printed for block in blocks("text")), f"put this into the README:\n{printed}"


def test_ci_does_what_the_readme_says() -> None:
    (line,) = re.findall(r"^    (pip install -e .*)$", README, flags=re.MULTILINE)
    install, tests = line.split(" && ")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(re.sub(r" --\S+", "", step) == install for step in ci)
    assert any(step.startswith(tests) for step in ci)
