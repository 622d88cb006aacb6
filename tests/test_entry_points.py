"""A package of others, `tests/example_package`, is installed and its three parts are used like the tool's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VARIANT = "example_attention+example_method"

Repshift = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def repshift(tmp_path_factory: pytest.TempPathFactory) -> Repshift:
    """The command line, with the example package installed where only it looks."""
    place, folder = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("run")
    build = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*build, "--target", str(place), str(ROOT / "tests" / "example_package")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(place))), "COLUMNS": "160"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        """One command line; several commands without options run one after the other in one process."""
        several = [a for a in arguments if a in ("models", "backends", "methods")]
        code = f"from repshift_cli.cli import run; raise SystemExit(max(run([c], True) for c in {several}))"
        command = [sys.executable, *(("-c", code) if several else ("-m", "repshift_cli", *arguments))]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)

    return run


def test_the_lists_have_them(repshift: Repshift) -> None:
    done = repshift("models", "backends", "methods")
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert "example Example family: a small vision transformer that is defined here. example_vit" in printed
    assert "example_attention Example back end: softmax attention written out." in printed
    assert "example_method Example method: keeps the tokens with the longest states." in printed


def test_they_are_measured_together(repshift: Repshift) -> None:
    done = repshift("bench", "--model", "example_vit", "--variant", f"example_attention,{VARIANT}",
                    "--keep", "0.5", "--rounds", "3", "--json", "-")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = {r["case"]["pruning"]: r for r in json.loads(done.stdout)["records"]}
    assert {r["status"] for r in records.values()} == {"ok"}
    assert records["example_method"]["tokens"] == [65, 33]
    assert {r["kernel"] for r in records.values()} == {"softmax ×4"}
    macs = {name: next(m for m in r["measurements"] if m["metric"] == "macs") for name, r in records.items()}
    assert macs["example_method"]["samples"] < macs["none"]["samples"]


def test_the_family_is_explained(repshift: Repshift) -> None:
    done = repshift("explain", "--model", "example_vit", "--keep", "0.5", "--layers", "1,3")
    assert done.returncode == 0, done.stderr
    assert "4: blocks.0 ... blocks.3 (Block)" in done.stdout
    assert "65 → 33 after block 1 → 17 after block 3" in done.stdout


def test_the_operator_is_measured_beside_the_others(repshift: Repshift) -> None:
    done = repshift("operators", "--operator", "example-operator", "--tokens", "64", "--heads", "2", "--rounds", "2",
                    "--json", "-")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = {r["case"]["attention"]: r for r in json.loads(done.stdout)["records"]}
    assert set(records) == {"flash", "example_operator"}
    measured = {m["metric"]: m for m in records["example_operator"]["measurements"]}
    assert measured["err_own"]["samples"][0] < 1e-6
    assert measured["err_full"]["reason"] == "not applicable: looks at nothing"
