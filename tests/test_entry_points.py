"""A package of others, `tests/example_package`, is installed and its parts are used like the tool's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

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

    def run(*arguments: str, together: bool = False) -> subprocess.CompletedProcess[str]:
        """One command line; or `together` one in each argument, one after the other in one process."""
        code = f"from repshift_cli.cli import run; raise SystemExit(max(run(c.split(), False) for c in {arguments}))"
        command = [sys.executable, *(("-c", code) if together else ("-m", "repshift_cli", *arguments))]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)

    return run


def test_the_lists_have_them(repshift: Repshift) -> None:
    done = repshift("models", "backends", "methods", together=True)
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


# --- a metric and a format --------------------------------------------------------------------------------------------


def test_a_metric_is_one_file(repshift: Repshift, tmp_path: Path) -> None:
    """Listed, measured, in JSON and CSV, a column behind the known ones; one that fails costs its own figure."""
    out = tmp_path / "run.json"
    bench = f"bench --model example_vit --variant flash --rounds 1 --verbose --out {out}"
    done = repshift(bench, "metrics", together=True)
    assert done.returncode == 0, done.stderr
    table, printed = done.stdout.splitlines()[:8], " ".join(done.stdout.split())
    assert "example_parameters Parameters of the model, whatever they do. parameters, counted, value" in printed
    heading = next(line for line in table if line.startswith("variant"))
    assert heading.split().index("parameters") > heading.split().index("MACs")
    assert "not measured: luck: LookupError: there is none to count" in printed
    (record,) = json.loads(out.read_text())["records"]
    measured = {m["metric"]: m for m in record["measurements"]}
    assert record["status"] == "ok" and measured["macs"]["samples"]
    count = measured["example_parameters"]["samples"][0]
    assert count > 1e4 and measured["example_luck"]["reason"] == "LookupError: there is none to count"
    shown = repshift("show", str(out), "--csv", "-")
    names, values = (line.split(",") for line in shown.stdout.splitlines())
    assert float(values[names.index("example_parameters")]) == count and "example_luck" in names


def test_a_format_is_one_file(repshift: Repshift, tmp_path: Path) -> None:
    """An option of every command that has such a document, and a format of export."""
    out, lines = tmp_path / "run.json", tmp_path / "lines.txt"
    bench = f"bench --model example_vit --variant flash --rounds 1 --out {out} --example-lines {lines}"
    commands = (f"show {out} --example-lines", f"export {out} --format example-lines", "profile --help", "bench --help")
    done = repshift(bench, *commands, together=True)
    assert done.returncode == 0, done.stderr
    text = lines.read_text()
    assert text.startswith("flash: ") and text.endswith(" ms\n")
    assert done.stdout.count(text) == 2, "by show and by export"
    printed = " ".join(done.stdout.replace("│", " ").split())
    assert printed.count("--example-lines FILE|- Example format: a line per case with its latency") == 1, "bench alone"


# --- a method's own option --------------------------------------------------------------------------------------------

VARIANTS = "flash,flash+example_powered,flash+example_method"


def test_a_methods_own_option_is_listed(repshift: Repshift) -> None:
    done = repshift("methods", "bench --help", "profile --help", together=True)
    printed = " ".join(done.stdout.replace("│", " ").split())
    assert "with the shortest. takes --power" in printed
    assert (
        "--power Exponent of a state's length. (default: 1.0) float from -4 to 4; taken by example_powered" in printed
    )
    assert printed.count("--power LIST Exponent of a state's length. (default: 1.0)") == 2


def test_a_methods_own_option_is_an_axis_a_column_and_part_of_the_key(repshift: Repshift, tmp_path: Path) -> None:
    profile, out = tmp_path / "powers.toml", tmp_path / "run.json"
    profile.write_text('title = "both ends"\nmodel = "example_vit"\nkeep = 0.5\npower = [-1, 1]\n')
    done = repshift("bench", "--profile", str(profile), "--variant", VARIANTS, "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert any(line.split()[:4] == ["variant", "keep", "layers", "power"] for line in done.stdout.splitlines())
    run = json.loads(out.read_text())
    assert run["options"]["power"] == [-1.0, 1.0]
    assert [r["case"]["options"] for r in run["records"]] == [{}, {"power": -1.0}, {"power": 1.0}, {}]
    _, short, long, other = [
        next(m for m in r["measurements"] if m["metric"] == "fidelity_kl")["samples"] for r in run["records"]
    ]
    assert short != long == other, "the option reached the method"

    shown = repshift(f"show {out} --csv -", f"export {out} --format bencher", f"bench --resume {out}", together=True)
    assert shown.returncode == 0, shown.stderr
    heading, *rows = [line.split(",") for line in shown.stdout.splitlines()[:5]]
    assert [row[heading.index("power")] for row in rows] == ["", "-1", "1", ""]
    assert shown.stdout.count(" power=-1.0 ") == 1, "a name of its own for dashboards"
    assert len(json.loads(out.read_text())["records"]) == 4


def test_a_methods_own_option_is_refused_where_it_means_nothing(repshift: Repshift) -> None:
    start = "bench --variant flash+random --power "
    done = repshift(start + "5", start + "many", start + "2", together=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --power: 5.0 is too large; it must be at most 4",
        "error: --power: 'many' is not a number",
        "error: --power applies to methods that take it (`repshift methods`), and no variant has one",
    ]
