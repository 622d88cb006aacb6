"""Gates on real revisions in real processes: what is judged, what is refused, and that nothing is left behind."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from sham import FLASH, NEW, Repository, last, template
from synthetic import CPU, CUDA

from repshift_cli.gate import noise, process, revisions
from repshift_cli.gate.verdict import NothingMeasured
from repshift_cli.records import store

pytestmark = pytest.mark.slow


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_against_a_passes(repository: Repository) -> None:
    code, out, error = repository.gate("--base", "main")
    assert (code, last(out)) == (
        0,
        f"PASS: no regression in 2 cases against main ({repository.git('rev-parse', 'HEAD')[:10]})",
    )
    assert "head: the working tree at" in out and "uncommitted" not in out
    assert repository.is_tidy, error


def test_how_long_it_takes_is_told_before_and_rounds_of_a_total(repository: Repository) -> None:
    code, _, error = repository.gate("--base", "main", "--rounds", "9", "--most-rounds", "12")
    assert code == 0, error
    assert "9 rounds of one process per side, at most about " in error and "; up to 12, at most about " in error
    assert re.search(r"^round 1 of 9: base, about \d+ s left$", error, flags=re.MULTILINE)


def test_an_exact_metric_that_decides_saves_the_rounds(repository: Repository, tmp_path: Path) -> None:
    repository.git("switch", "-q", "-c", "more")
    template_of_head = json.loads((repository.folder / "template.json").read_text())
    for record in template_of_head["records"]:
        for m in record["measurements"]:
            m["samples"] = [2 * s for s in m["samples"]] if m["metric"] == "macs" else m["samples"]
    repository.write({"template.json": json.dumps(template_of_head)})
    repository.commit("twice the MACs")
    code, out, error = repository.gate("--base", "main", "--head", "more", SHAM_LOG=str(tmp_path / "log"))
    assert code == 1 and "MACs" in last(out) and "MACs had decided, so no times were measured" in out, error
    assert "--timing-only" not in (tmp_path / "log").read_text()


def test_a_quick_gate_has_rounds_of_its_own(repository: Repository) -> None:
    code, _, error = repository.gate("--base", "main", "--quick", "--rounds", "4")
    assert code == 2 and "--quick has rounds of its own" in error
    code, out, error = repository.gate("--base", "main", "--quick")
    assert code == 0 and "a slow-down below 2.0% is let through" in out and "8 rounds of one process" in error
    repository.write({"factor.txt": "1.02"})
    code, out, error = repository.gate("--base", "main", "--quick")
    assert code == 3 and last(out).endswith("without --quick, in more and longer rounds"), error


def test_a_quick_gate_times_what_gates_alone(repository: Repository, tmp_path: Path) -> None:
    inform = '[thresholds.cases."efficient"]\nlatency = "inform"\n'
    repository.write({"gate.toml": (repository.folder / "gate.toml").read_text() + inform, "factor.txt": "1.2"})
    code, out, error = repository.gate("--base", "main", "--quick", "--out", "g")
    asked = tomllib.loads((repository.folder / "g" / "rounds" / "profile.toml").read_text())
    assert code == 1 and "efficient" not in last(out), error
    assert asked["variant"] == ["flash"] and "only on" not in out
    repository.write({"gate.toml": (repository.folder / "gate.toml").read_text().replace("0.01", '"inform"')})
    code, out, error = repository.gate("--base", "main", "--quick")
    assert code == 0 and "round 1" not in error, "MACs gate, and need no rounds"


def test_a_slower_commit_fails_in_every_output(repository: Repository) -> None:
    repository.git("switch", "-q", "-c", "slow")
    repository.write({"factor.txt": "1.055"})
    repository.commit("slower")
    outputs = {name: repository.folder / "out" / name for name in ("t.md", "j.xml", "o.json")}
    code, out, _ = repository.gate(
        *("--base", "main", "--head", "slow", "--github", "--out", "g"),
        *("--markdown", str(outputs["t.md"]), "--junit", str(outputs["j.xml"]), "--json", str(outputs["o.json"])),
    )
    assert code == 1
    assert last(out).startswith("FAIL: flash latency changed by +5.") and "against main (" in last(out)
    assert "::error title=fail%3A flash::flash latency changed by +5." in out and "%25" in out
    assert outputs["t.md"].read_text().startswith("### repshift gate: fail\n\nFAIL: flash latency")
    suite = ET.fromstring(outputs["j.xml"].read_text()).find("testsuite")
    assert suite is not None and (suite.get("tests"), suite.get("failures")) == ("4", "2")
    assert {t.get("classname") for t in suite if t.find("failure") is not None} == {"flash", "efficient"}
    assert json.loads(outputs["o.json"].read_text())["exit_code"] == 1
    head = store.load(repository.folder / "g" / "head.json")
    latency = head.records[0].measurement("latency")
    assert latency and latency.per_round == 1 and len(latency.samples) == 16, "8 processes and 8 of the confirmation"
    assert repository.is_tidy


def test_json_on_stdout_has_it_to_itself(repository: Repository) -> None:
    code, out, error = repository.gate("--base", "HEAD", "--github", "--json", "-")
    said = json.loads(out)
    assert code == 0 and (said["verdict"], said["exit_code"]) == ("pass", 0)
    assert {f["metric"] for f in said["findings"]} >= {"latency", "macs"} and said["sentence"] in error


def test_a_metric_that_is_better_higher_gates_the_other_way_round(repository: Repository) -> None:
    profile = (repository.folder / "gate.toml").read_text().replace("latency", "throughput")
    repository.write({"gate.toml": profile, "factor.txt": "1.055"})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "flash img/s changed by -5." in last(out)


def test_a_faster_commit_is_told(repository: Repository) -> None:
    repository.write({"factor.txt": "0.895"})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 0 and "better: flash latency changed by -10." in last(out)


def test_a_dirty_tree_is_measured_as_it_is_and_said(repository: Repository) -> None:
    repository.write({"factor.txt": "1.055"})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "with uncommitted changes" in out


def test_an_exact_metric_fails_without_statistics(repository: Repository) -> None:
    text = template(FLASH, NEW).replace(str(17.56e9), str(17.57e9))
    repository.write({"template.json": text})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "MACs changed by +0.1%" in last(out)


def test_the_sides_take_turns_each_in_its_own_tree(repository: Repository, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert repository.gate("--base", "main", SHAM_LOG=str(log))[0] == 0
    rounds = [line.split()[:2] for line in log.read_text().splitlines() if "--timing-only" in line]
    sequence = "".join(name[0] for name, _ in rounds)
    assert sequence == "bhhb" * 4
    assert {Path(place) == repository.folder for name, place in rounds if name.startswith("head")} == {True}
    assert all("repshift-gate-" in place for name, place in rounds if name.startswith("base"))


def test_it_runs_from_a_folder_within_and_from_a_hook(repository: Repository) -> None:
    inside = repository.folder / "inside"
    inside.mkdir()
    for name in ("repshift_cli", "gate.toml", "template.json", "factor.txt", "mood.txt"):
        (repository.folder / name).rename(inside / name)
    repository.commit("moved")
    repository.folder = inside
    assert repository.gate("--base", "main", GIT_DIR="/nowhere", GIT_INDEX_FILE="/nowhere")[0] == 0


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_revision_that_does_not_exist(repository: Repository) -> None:
    code, out, error = repository.gate("--base", "nowhere")
    assert (code, out) == (4, "") and "no base: 'nowhere' names no commit here" in last(error)


def test_no_repository(repository: Repository, tmp_path: Path) -> None:
    (repository.folder / ".git").rename(tmp_path / "git")
    code, _, error = repository.gate("--base", "main")
    assert code == 4 and "is in no git checkout" in last(error)


@pytest.mark.parametrize("arguments", [[], ["--learn", "--base", "main"], ["--learn", "--self-test"]])
def test_what_to_compare_must_be_one_thing(repository: Repository, arguments: list[str]) -> None:
    code, _, error = repository.gate(*arguments)
    assert code == 2 and "--base main" in last(error)


def test_a_newer_schema_on_base(repository: Repository) -> None:
    repository.write({"template.json": template(FLASH, schema=99)})
    repository.commit("newer")
    repository.write({"template.json": template(FLASH)})
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 4 and "no base: base wrote what this repshift cannot read" in last(error) and "99" in last(error)
    assert repository.is_tidy


def test_another_torch_is_a_mismatch_unless_the_interpreters_differ(repository: Repository, tmp_path: Path) -> None:
    other = dataclasses.replace(CPU, packages={"torch": "2.12.0"})
    repository.write({"template.json": template(FLASH, NEW, machine=other)})
    repository.commit("another torch")
    repository.write({"template.json": template(FLASH, NEW)})
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 4 and "environment mismatch: base and head differ in torch 2.12.0 and 2.13.0+cpu" in last(error)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    code, out, error = repository.gate("--base", "HEAD", "--base-python", str(python))
    assert code == 0, error
    assert "differ in torch 2.12.0 and 2.13.0+cpu, as their interpreters do" in out


def test_another_card_of_the_same_model_is_a_mismatch(repository: Repository) -> None:
    repository.write({"template.json": template(FLASH, machine=CUDA)})
    repository.commit("one card")
    repository.write({"template.json": template(FLASH, machine=dataclasses.replace(CUDA, uuid="GPU-other"))})
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 4 and "base and head differ in GPU GPU-7b1f and GPU-other" in last(error)


def test_nothing_that_ran_is_nothing_measured(repository: Repository) -> None:
    run = json.loads(template(FLASH))
    run["records"] = [
        json.loads(json.dumps(run["records"][0])) | {"status": "skipped", "reason": "no GPU", "measurements": []}
    ]
    repository.write({"template.json": json.dumps(run)})
    repository.commit("nothing")
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 5 and "nothing measured on both sides: base: no GPU" in last(error)


def test_the_same_code_on_both_sides_is_refused(repository: Repository) -> None:
    repository.git("rm", "-rqf", "repshift_cli")
    repository.commit("a user's repository")
    code, _, error = repository.gate("--base", "main", PYTHONPATH=str(Path(revisions.__file__).parent.parent.parent))
    assert code == 2 and "both sides would run the same code" in last(error)


def test_a_package_from_elsewhere_is_refused(repository: Repository, tmp_path: Path) -> None:
    """The tree's folder without __init__.py loses against an installed package of the same name."""
    (tmp_path / "site" / "mine").mkdir(parents=True)
    (tmp_path / "site" / "mine" / "__init__.py").write_text("")
    (repository.folder / "mine").mkdir()
    profile = (repository.folder / "gate.toml").read_text().replace("vit_b", "mine.model:make")
    repository.write({"mine/model.py": "", "gate.toml": profile})
    repository.commit("mine")
    code, _, error = repository.gate("--base", "main", PYTHONPATH=str(tmp_path / "site"))
    assert code == 4 and "base would import mine from" in last(error) and "not from its own tree" in last(error)


def test_a_shallow_clone_says_what_to_set(repository: Repository, tmp_path: Path) -> None:
    repository.commit("two")
    repository.git("clone", "-q", "--depth", "1", f"file://{repository.folder}", str(tmp_path / "clone"))
    repository.folder = tmp_path / "clone"
    code, _, error = repository.gate("--base", "HEAD~1")
    assert code == 4 and last(error).endswith("the clone is shallow: git fetch --unshallow (fetch-depth: 0 in CI)")


def test_a_checkout_that_git_may_not_use_says_why(repository: Repository) -> None:
    code, _, error = repository.gate("--base", "main", GIT_TEST_ASSUME_DIFFERENT_OWNER="1", HOME="/nowhere")
    assert code == 4 and "dubious ownership" in last(error) and "safe.directory" in last(error)


# --- repositories of every kind ---------------------------------------------------------------------------------------


def test_spaces_and_shell_characters_are_no_more_than_characters(tmp_path: Path, repository: Repository) -> None:
    """In the repository's path, in the folder within it, in branches, in the profile's name; and a REF that begins
    with a dash."""
    odd = Repository(tmp_path / "a repo; touch $(touch pwned) 'x'")
    inside = odd.folder / "in side"
    inside.mkdir()
    for name in ("repshift_cli", "gate.toml", "template.json", "factor.txt", "mood.txt"):
        (odd.folder / name).rename(inside / name)
    odd.commit("moved")
    branch = """x;touch${IFS}pwned&'"$(touch${IFS}pwned)"""
    odd.git("branch", branch)
    odd.git("update-ref", "refs/heads/-dash", "HEAD")
    odd.folder = inside
    code, out, error = odd.gate("--base", branch, "--head", "-dash", "--setup", "true", "--out", "o u t")
    assert code == 0, error
    assert f"against {branch} (" in last(out) and odd.worktrees() == 1
    assert not list(tmp_path.rglob("pwned"))


def test_submodules_come_by_setup(repository: Repository, tmp_path: Path) -> None:
    """A worktree has none; what they hold is missing until the command brings it, and they leave nothing behind."""
    parts = Repository(tmp_path / "parts")
    local = ("-c", "protocol.file.allow=always")
    repository.git(*local, "submodule", "--quiet", "add", str(parts.folder), "parts")
    repository.git("rm", "-q", "factor.txt")
    repository.write({".gitignore": "factor.txt\nrepshift-runs/\n__pycache__/\n"})
    repository.commit("with a submodule")
    repository.write({"factor.txt": "1.0"})
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 5 and "nothing measured: base ended with exit code 1: FileNotFoundError" in last(error)
    bring = "git -c protocol.file.allow=always submodule --quiet update --init && cp parts/factor.txt ."
    code, out, error = repository.gate("--base", "HEAD", "--setup", bring)
    assert code == 0 and "uncommitted" not in out, error
    assert repository.is_tidy and not list((repository.folder / ".git" / "worktrees").glob("*"))


# --- trees that must be built -----------------------------------------------------------------------------------------


def test_setup_builds_both_trees_and_may_bring_their_interpreter(repository: Repository) -> None:
    repository.git("rm", "-q", "--cached", "factor.txt")
    repository.write({".gitignore": "factor.txt\nrepshift-runs/\nenv/\n__pycache__/\n"})
    repository.commit("built")
    build = f"echo 1.0 > factor.txt && mkdir -p env && ln -sf {sys.executable} env/python"
    refs = ("--base", "HEAD", "--head", "HEAD")
    code, _, error = repository.gate(*refs, "--setup", build, "--base-python", "env/python")
    assert code == 0, error
    assert error.count(f"base: {build}") == 1 and error.count(f"head: {build}") == 1


def test_a_setup_that_fails_is_told_by_its_last_line(repository: Repository) -> None:
    code, _, error = repository.gate("--base", "HEAD", "--setup", "echo no compiler >&2; exit 7")
    assert code == 5 and "--setup failed on base with exit code 7: no compiler" in last(error)
    assert repository.is_tidy


# --- noise and self-test ----------------------------------------------------------------------------------------------


def test_noise_is_learnt_stored_with_a_date_and_used(repository: Repository) -> None:
    code, out, error = repository.gate("--learn", "--most-rounds", "8")
    assert code == 0, error
    path = repository.folder / noise.FILE
    (learnt,) = noise.load(path)
    assert learnt.runner["torch"] == "2.13.0+cpu" and learnt.learnt[:2] == "20" and learnt.rounds == 8
    assert set(learnt.cases) == {FLASH.key, NEW.key}
    assert 0 < learnt.cases[FLASH.key]["latency"] < 0.002
    loud = dataclasses.replace(learnt, cases={case: {"latency": 0.2} for case in learnt.cases})
    noise.save(path, loud)
    repository.write({"factor.txt": "1.055"})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 0 and "a slow-down below 20.0% is let through" in out
    assert "the noise of this runner, learnt 20" in out


def test_the_self_test_passes_where_the_delay_arrives(repository: Repository, tmp_path: Path) -> None:
    """One survey, and both gates in the same rounds: 25 processes, where two gates would have started 36."""
    log = tmp_path / "log"
    code, out, error = repository.gate("--self-test", SHAM_LOG=str(log))
    assert code == 0, error
    assert "8 rounds of 3 processes, at most about " in error
    started = [line.split()[0] for line in log.read_text().splitlines()]
    assert "".join(name[0] for name in started) == "h" + "bhddhb" * 4
    lines = out.splitlines()
    assert lines[-3].startswith("A/A: PASS") and lines[-2].startswith("with 5% added: FAIL")
    assert lines[-1] == "PASS: the gate lets A/A through and catches 5% here"


def test_the_self_test_fails_where_the_delay_is_not_seen(repository: Repository) -> None:
    repository.write({"mood.txt": "numb"})
    code, out, _ = repository.gate("--self-test")
    assert code == 1 and "5% added was pass" in last(out)


# --- nothing is left behind -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "mood", "count"),
    [
        (signal.SIGINT, 130, "hang turns", 2),
        (signal.SIGTERM, 143, "hang", 1),
        (signal.SIGHUP, 129, "hang turns", 2),
    ],
)
def test_an_interrupted_gate_leaves_neither_worktree_nor_process(
    repository: Repository, tmp_path: Path, number: signal.Signals, code: int, mood: str, count: int
) -> None:
    """Whether one process runs or, where both know of turns, two."""
    repository.write({"mood.txt": mood})
    repository.commit("hangs")
    log = tmp_path / "log"
    log.touch()
    process, pids = hanging(repository, log, count)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert len(pids) == 2 * count and not any(map(alive, pids))
    assert repository.is_tidy


def hanging(repository: Repository, log: Path, count: int = 1) -> tuple[subprocess.Popen[str], list[int]]:
    """A gate whose first round hangs, and the processes that do, each of `count` with its child."""
    process = repository.start("--base", "HEAD", SHAM_LOG=str(log))
    while log.read_text().count("hanging") < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    assert repository.worktrees() == 2
    lines = (line.split() for line in log.read_text().splitlines())
    return process, [int(pid) for words in lines if words[0] == "hanging" for pid in words[1:]]


def test_after_sigkill_what_measured_is_gone_and_the_next_gate_tidies_up(
    repository: Repository, tmp_path: Path
) -> None:
    """Not what another gate that still runs has checked out."""
    repository.write({"mood.txt": "hang"})
    repository.commit("hangs")
    log = tmp_path / "log"
    log.touch()
    running, _ = hanging(repository, log)
    log.write_text("")
    (tree,) = Path(tempfile.gettempdir()).iterdir()
    assert len(list((repository.folder / "repshift-runs").iterdir())) == 1
    killed = repository.start("--base", "HEAD", SHAM_LOG=str(log))
    while "hanging" not in log.read_text():
        time.sleep(0.05)
    pids = [int(pid) for pid in log.read_text().splitlines()[-1].split()[1:]]
    assert len(list((repository.folder / "repshift-runs").iterdir())) == 2, "each has a folder of its own"
    killed.kill()
    killed.communicate(timeout=60)
    until = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert pids and not any(map(alive, pids))
    assert repository.worktrees() == 3, "a worktree is left behind"
    repository.write({"mood.txt": ""})
    code, _, error = repository.gate("--base", "HEAD~1")
    assert code == 0, error
    assert error.count("removed what a gate that was killed left behind: ") == 1
    assert repository.worktrees() == 2 and list(Path(tempfile.gettempdir()).iterdir()) == [tree]
    running.terminate()
    running.communicate(timeout=60)
    assert repository.is_tidy


def alive(pid: int) -> bool:
    """Whether a process still runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_ignores_being_asked_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE", 0.2)
    monkeypatch.setattr(process, "TIMEOUT", 1.0)
    code = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    )
    with pytest.raises(NothingMeasured, match="was still running after"):
        process.run([sys.executable, "-c", code], tmp_path, os.environ, tmp_path / "log")
    assert not alive(int((tmp_path / "pid").read_text()))


def test_an_older_repshift_without_timing_only_is_measured_with_all_passes_on_both_sides(
    repository: Repository, tmp_path: Path
) -> None:
    repository.write({"mood.txt": "old"})
    repository.commit("old")
    repository.write({"mood.txt": ""})
    log = tmp_path / "log"
    code, _, error = repository.gate("--base", "HEAD", SHAM_LOG=str(log))
    assert code == 0, error
    assert "--timing-only" not in log.read_text() and log.read_text().count("--rounds 10") == 16
