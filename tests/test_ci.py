"""The workflows and the action: checked by a linter, their shell steps run here with GitHub's files and variables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from sham import ROOT, Repository

ACTION = ROOT / ".github" / "actions" / "perf-gate" / "action.yml"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINTER = shutil.which("actionlint", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.skipif(LINTER is None, reason="actionlint is not installed")
def test_the_workflows_pass_the_linter() -> None:
    assert LINTER
    done = subprocess.run([LINTER, *map(str, WORKFLOWS)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ci_does_what_the_script_does() -> None:
    steps = read(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["checks"]["steps"]
    assert ".ci/run" in [step.get("run") for step in steps]


def test_perf_never_runs_the_code_of_forks_and_has_the_whole_history() -> None:
    job = read(ROOT / ".github" / "workflows" / "perf.yml")["jobs"]["gate"]
    assert "head.repo.full_name == github.repository" in job["if"]
    assert job["steps"][0]["with"]["fetch-depth"] == 0
    used = next(step for step in job["steps"] if step.get("uses") == "./.github/actions/perf-gate")
    assert set(used["with"]) <= set(read(ACTION)["inputs"])


def test_no_shell_step_holds_an_expression() -> None:
    """What comes from outside reaches the shell as a variable, never as its text."""
    jobs = [job["steps"] for path in WORKFLOWS for job in read(path)["jobs"].values()]
    for step in [step for steps in jobs for step in steps] + read(ACTION)["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


# --- the action's steps, run ------------------------------------------------------------------------------------------


class Runner:
    """Runs the action's shell steps in a repository, as GitHub would: expressions filled in, files to write to."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository = repository
        self.files = {name: folder / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in self.files.values():
            path.touch()
        self.command = folder / "repshift"
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from repshift_cli.cli import main; main()"
        self.command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -c "{code}" "$@"\n')
        self.command.chmod(0o755)

    def run(self, target: str = "", **inputs: str) -> tuple[int, str]:
        """The exit code of the first step that fails, or 0, and all that was printed."""
        action = read(ACTION)
        values = {f"inputs.{name}": given["default"] for name, given in action["inputs"].items()}
        values |= {"inputs.command": str(self.command), "inputs.profile": "gate.toml", "github.base_ref": target}
        values |= {f"inputs.{name.replace('_', '-')}": value for name, value in inputs.items()}
        printed = ""
        for step in action["runs"]["steps"]:
            if "run" not in step or ("if" in step and values["inputs.learn"] != "true"):
                continue
            given = {name: fill(text, values) for name, text in step.get("env", {}).items()}
            environment = os.environ | given | {name: str(path) for name, path in self.files.items()}
            done = subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
                cwd=self.repository.folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            printed += done.stdout + done.stderr
            for line in self.files["GITHUB_OUTPUT"].read_text().splitlines():
                name, _, value = line.partition("=")
                values[f"steps.{step.get('id')}.outputs.{name}"] = value
            if done.returncode:
                return done.returncode, printed
        return 0, printed

    def file(self, name: str) -> str:
        return self.files[name].read_text()


def fill(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", lambda found: values[found[1]], text)


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    for name in ("tmp", "github"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return Runner(Repository(tmp_path / "repo"), tmp_path / "github")


@pytest.mark.slow
def test_a_slower_pull_request_fails_with_summary_annotations_and_files(runner: Runner, tmp_path: Path) -> None:
    """The base is the merge base: what main did since does not count."""
    repository = runner.repository
    shutil.copytree(repository.folder, tmp_path / "origin")
    origin = Repository.__new__(Repository)
    origin.folder = tmp_path / "origin"
    origin.commit("main went on")
    repository.git("remote", "add", "origin", str(origin.folder))
    base = repository.git("rev-parse", "HEAD")
    repository.write({"factor.txt": "1.055"})
    repository.commit("slower")
    code, printed = runner.run(target="main")
    assert code == 1, printed
    assert f"base={base}" in runner.file("GITHUB_OUTPUT") and "exit-code=1" in runner.file("GITHUB_OUTPUT")
    assert "::error title=fail%3A flash::flash latency" in printed
    summary = runner.file("GITHUB_STEP_SUMMARY")
    assert "### repshift gate: fail" in summary and "| flash | latency |" in summary
    out = repository.folder / "repshift-gate"
    assert {"gate.md", "gate.xml", "gate.json", "report.html", "run"} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_a_push_is_held_against_the_parent_and_learns_the_noise_first(runner: Runner) -> None:
    runner.repository.commit("nothing")
    code, printed = runner.run(learn="true", arguments="--rounds 8 --most-rounds 8")
    assert code == 0, printed
    assert "base=HEAD~1" in runner.file("GITHUB_OUTPUT") and "exit-code=0" in runner.file("GITHUB_OUTPUT")
    assert "learnt from 8 rounds" in printed
    assert "the noise of this runner, learnt" in runner.file("GITHUB_STEP_SUMMARY")


@pytest.mark.slow
@pytest.mark.parametrize(("allow", "code"), [("true", 0), ("false", 3)])
def test_what_stays_open_fails_the_job_only_where_asked(runner: Runner, allow: str, code: int) -> None:
    runner.repository.write({"gate.toml": (runner.repository.folder / "gate.toml").read_text().replace("0.01", "0.0")})
    runner.repository.commit("no margin at all: A/A is open")
    assert runner.run(base="HEAD", allow_inconclusive=allow)[0] == code
    assert "exit-code=3" in runner.file("GITHUB_OUTPUT")


@pytest.mark.slow
def test_a_gate_that_could_not_judge_says_so_in_the_summary(runner: Runner) -> None:
    code, printed = runner.run(base="nowhere")
    assert code == 4 and "names no commit here" in printed
    assert "exit code 4 before it judged" in runner.file("GITHUB_STEP_SUMMARY")


ODD = """x;touch${IFS}pwned&'"$(touch${IFS}pwned)`touch${IFS}pwned`%0A"""
"""What git takes for a branch's name, and a shell would run."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [ODD, "-dash", "--upload-pack=touch${IFS}pwned"])
def test_a_target_of_any_name_is_a_name_and_no_command(runner: Runner, tmp_path: Path, name: str) -> None:
    """The clone has no branch of that name yet: it is fetched."""
    repository = runner.repository
    base = repository.commit("one more")
    shutil.copytree(repository.folder, tmp_path / "origin")
    repository.git("remote", "add", "origin", str(tmp_path / "origin"))
    subprocess.run(["git", "update-ref", f"refs/heads/{name}", base], cwd=tmp_path / "origin", check=True)
    repository.commit("a change")
    code, printed = runner.run(target=name)
    assert code == 0, printed
    assert f"base={base}\n" in runner.file("GITHUB_OUTPUT")
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.slow
def test_a_base_of_any_name_is_a_name_and_no_command(runner: Runner, tmp_path: Path) -> None:
    repository = runner.repository
    for name in (ODD, "-dash"):
        repository.git("update-ref", f"refs/heads/{name}", "HEAD")
        code, printed = runner.run(base=f"{name}\nexit-code=0")
        assert code == 0 and f"base={name}\n" in runner.file("GITHUB_OUTPUT"), printed
        shutil.rmtree(repository.folder / "repshift-gate")
    assert runner.file("GITHUB_OUTPUT").count("exit-code=") == 2
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.slow
def test_a_shallow_clone_says_what_to_set(runner: Runner, tmp_path: Path) -> None:
    """As actions/checkout makes it: one commit, no merge base and no parent."""
    repository = runner.repository
    repository.git("switch", "-q", "-c", "change")
    repository.commit("a change")
    repository.git("switch", "-q", "main")
    repository.commit("main went on")
    clone = f"clone -q --depth 1 --branch change file://{repository.folder} {tmp_path / 'clone'}"
    repository.git(*clone.split())
    repository.folder = tmp_path / "clone"
    code, printed = runner.run(target="main")
    assert code != 0 and "give actions/checkout fetch-depth: 0" in printed
    code, printed = runner.run()
    assert code == 4 and "'HEAD~1' names no commit here; the clone is shallow" in printed
    assert "fetch-depth: 0" in printed


@pytest.mark.slow
def test_a_setup_with_spaces_arrives_whole(runner: Runner) -> None:
    runner.repository.commit("nothing")
    code, printed = runner.run(base="HEAD", setup="echo 'two  words' > built.txt")
    assert code == 0, printed
    assert (runner.repository.folder / "built.txt").read_text() == "two  words\n"
