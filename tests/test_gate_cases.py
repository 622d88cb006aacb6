"""Gates whose sides do not run the same: what head no longer measures, what it computes, and whose fault it is."""

from __future__ import annotations

import dataclasses
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from sham import FLASH, NEW, PROFILE, Repository, last, template, with_record

from repshift_cli.records import OPERATORS, Record, store

pytestmark = pytest.mark.slow


# --- what is measured ------------------------------------------------------------------------------------------------


def test_a_profile_of_operators_is_gated_by_their_command(repository: Repository, tmp_path: Path) -> None:
    cases = [dataclasses.replace(case, model=OPERATORS) for case in (FLASH, NEW)]
    profile = PROFILE.format(variants='["flash", "efficient"]').replace('model = "vit_b"\nvariant', "operator")
    repository.write({"gate.toml": profile, "template.json": template(*cases), "mood.txt": "lacks=efficient"})
    repository.commit("older")
    repository.write({"mood.txt": "", "factor.txt": "1.2"})
    code, out, _ = repository.gate("--base", "HEAD", SHAM_LOG=str(tmp_path / "log"))
    assert code == 1 and "FAIL" in last(out) and "only on head: efficient" in out
    commands = [line.split()[2] for line in (tmp_path / "log").read_text().splitlines()]
    assert set(commands) == {"operators"}


# --- cases that one side lacks ----------------------------------------------------------------------------------------


def test_a_case_that_base_does_not_know_is_listed_and_the_rest_judged(repository: Repository) -> None:
    repository.write({"mood.txt": "lacks=efficient"})
    repository.commit("older")
    repository.write({"mood.txt": ""})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 0 and "in 1 case" in last(out)
    assert "only on head: efficient" in out and "unknown attention back end" in out


def test_a_case_that_fails_on_head_alone_is_a_regression(repository: Repository) -> None:
    broken = with_record(template(FLASH), to_fail("CUDA out of memory"))
    repository.write({"template.json": broken})
    code, out, _ = repository.gate("--base", "HEAD", "--github")
    assert code == 1 and "efficient no longer runs (failed: CUDA out of memory)" in last(out)
    assert "::error title=fail%3A efficient::efficient no longer runs" in out


def test_a_head_that_fails_altogether_is_a_regression(repository: Repository) -> None:
    run = json.loads(template(FLASH))
    repository.write({"template.json": template(FLASH)})
    repository.commit("one case")
    run["records"][0] |= {"status": "failed", "reason": "out of memory", "measurements": []}
    repository.write({"template.json": json.dumps(run)})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "flash no longer runs (failed: out of memory)" in last(out)


def test_what_processes_warn_of_is_told_with_their_number(repository: Repository) -> None:
    text = template(FLASH).replace(
        "random weights: fidelity says nothing of a trained model", "3 rounds were throttled"
    )
    repository.write({"template.json": text})
    _, out, _ = repository.gate("--base", "HEAD")
    assert "warning in 8 of 16 processes: 3 rounds were throttled" in out


def test_hardware_that_throttles_everywhere_is_told(repository: Repository) -> None:
    run = json.loads(template(FLASH))
    run["records"][0]["throttled"] = True
    repository.write({"template.json": json.dumps(run)})
    repository.commit("a hot room")
    _, out, _ = repository.gate("--base", "HEAD")
    assert "warning in 16 of 16 processes: the device was throttled by hardware" in out


def to_fail(reason: str) -> Record:
    return Record(NEW, "failed", reason)


def test_a_head_that_refuses_what_base_measures_is_a_regression(repository: Repository) -> None:
    repository.write({"template.json": with_record(template(FLASH), Record(NEW, "skipped", "it takes no mask"))})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "efficient no longer runs (skipped: it takes no mask)" in last(out)


# --- processes that end -----------------------------------------------------------------------------------------------


def test_a_head_that_crashes_before_it_writes_anything_is_a_regression(repository: Repository) -> None:
    repository.write({"mood.txt": "segv"})
    code, out, error = repository.gate("--base", "HEAD")
    assert code == 1, error
    assert "flash no longer runs (failed: head ended with signal 11 (Segmentation fault): it said nothing)" in last(out)
    assert "head: another look at what failed" in error and repository.is_tidy


def test_a_head_that_refuses_its_profile_is_a_regression_where_base_takes_it(repository: Repository) -> None:
    repository.write({"mood.txt": "lacks=flash"})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "head ended with exit code 2: unknown attention back end 'flash'" in last(out)
    repository.commit("base too")
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 2 and "head (the working tree at" in last(error) and "unknown attention back end" in last(error)


def test_a_case_that_head_planned_and_never_recorded_is_a_regression(repository: Repository) -> None:
    """As a run file looks after a crash of a repshift that has no workers."""
    run = json.loads(template(FLASH, NEW))
    run["records"] = run["records"][:1]
    repository.write({"template.json": json.dumps(run)})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "efficient no longer runs (failed: not measured: head ended with exit code 0" in last(out)


def test_a_head_that_dies_in_the_rounds_is_a_regression(repository: Repository) -> None:
    """Started twice, so that what happened by chance does not count; and base measured the same in that round."""
    repository.write({"mood.txt": "dies"})
    code, out, _ = repository.gate("--base", "HEAD", "--junit", "j.xml", "--out", "g")
    assert code == 1
    why = "exit code 1: CUDA error: an illegal memory access was encountered"
    assert f"flash no longer runs (failed: {why}); efficient no longer runs" in last(out)
    assert "round 1 was the last, for a case no longer runs" in out
    assert ET.parse(repository.folder / "j.xml").getroot().get("failures") == "2"
    assert [r.status for r in store.load(repository.folder / "g" / "head.json").records] == ["failed", "failed"]
    assert [r.status for r in store.load(repository.folder / "g" / "base.json").records] == ["ok", "ok"]


def test_a_head_that_crashes_when_asked_for_help_is_judged_by_what_it_measures(repository: Repository) -> None:
    repository.write({"mood.txt": "helpless segv"})
    code, out, error = repository.gate("--base", "HEAD", "--case-timeout", "60")
    assert code == 1 and "flash no longer runs (failed: head ended with signal 11" in last(out), error
    repository.write({"mood.txt": "helpless"})
    code, out, error = repository.gate("--base", "HEAD", "--quick")
    assert code == 0, error
    assert "`repshift bench --help` fails on head (AttributeError: no help), so no option" in " ".join(out.split())


def test_a_case_that_head_no_longer_plans_is_in_the_last_line(repository: Repository) -> None:
    repository.write({"template.json": template(FLASH)})
    code, out, _ = repository.gate("--base", "HEAD", "--quick")
    assert code == 0 and last(out).startswith("PASS: no regression in 1 case against HEAD")
    assert last(out).endswith("; no longer planned on head: efficient")


def test_what_fails_once_and_then_runs_leaves_the_gate_open(repository: Repository) -> None:
    repository.write({"mood.txt": "dies-once"})
    code, out, _ = repository.gate("--base", "HEAD", "--github")
    assert code == 3 and "failed on the working tree at" in last(out) and "round 1: exit code 1" in last(out)
    assert "::warning title=inconclusive%3A flash::flash failed once: round 1" in out


def test_a_base_that_dies_is_no_fault_of_heads(repository: Repository) -> None:
    repository.write({"mood.txt": "dies"})
    repository.commit("base dies")
    repository.write({"mood.txt": ""})
    code, out, error = repository.gate("--base", "HEAD")
    assert (code, out) == (5, "")
    assert "nothing measured: base in round 1: flash: exit code 1: CUDA error" in last(error)
    repository.write({"mood.txt": "segv"})
    repository.commit("base dies at once")
    repository.write({"mood.txt": ""})
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 5 and "nothing measured: base ended with signal 11" in last(error)


# --- what the sides compute -------------------------------------------------------------------------------------------


def with_output(words: str = "float32 (2, 10)", sketch: tuple[float, ...] = (3.0, 4.0), finite: float = 1.0) -> str:
    """Two cases with that output."""
    run: dict[str, Any] = json.loads(template(FLASH, NEW))
    for record in run["records"]:
        record["output"] = {"words": words, "finite": finite, "sketch": sketch}
    return json.dumps(run)


def test_a_head_that_computes_something_else_fails_before_it_is_timed(repository: Repository) -> None:
    repository.write({"template.json": with_output()})
    repository.commit("one")
    code, out, _ = repository.gate("--base", "HEAD", "--json", "o.json")
    assert code == 0 and "outputs: the same in 2 cases" in out
    gated = {f["metric"] for f in json.loads((repository.folder / "o.json").read_text())["findings"] if f["verdict"]}
    assert gated >= {"latency", "macs", "output"}
    repository.write({"template.json": with_output(sketch=(3.0, 4.5)), "factor.txt": "0.01"})
    code, out, error = repository.gate("--base", "HEAD")
    assert code == 1, error
    assert "FAIL: flash output: head's numbers are 10.00% away from base's (5.00% are let through)" in last(out)
    assert "output had decided, so no times were measured" in out and "round 1" not in error
    profile = (repository.folder / "gate.toml").read_text()
    repository.write({"gate.toml": profile + "output = 0.2\n", "factor.txt": "1.0"})
    code, out, error = repository.gate("--base", "HEAD")
    assert code == 0 and "outputs: at most 10% apart in 2 cases" in out


def test_another_shape_fails_unless_it_is_meant(repository: Repository) -> None:
    repository.write({"template.json": with_output()})
    repository.commit("one")
    repository.write({"template.json": with_output("float32 (2, 12)")})
    code, out, _ = repository.gate("--base", "HEAD")
    assert code == 1 and "head puts out float32 (2, 12), base float32 (2, 10)" in last(out)
    assert 'where that is meant, set output = "inform" in [thresholds]' in last(out)
    repository.write({"gate.toml": (repository.folder / "gate.toml").read_text() + 'output = "inform"\n'})
    assert repository.gate("--base", "HEAD")[0] == 0


def test_a_base_whose_output_is_another_in_every_process_is_not_judged_by_it(repository: Repository) -> None:
    repository.write({"template.json": with_output(), "mood.txt": "wanders"})
    repository.commit("no seed")
    code, out, error = repository.gate("--base", "HEAD")
    assert code == 0 and "base: another look at what it puts out" in error
    assert "base's own output differs from process to process, so head's was not judged" in out


# --- processes that measure in turn -----------------------------------------------------------------------------------


def test_sides_that_know_of_turns_are_measured_together(repository: Repository, tmp_path: Path) -> None:
    repository.write({"mood.txt": "turns"})
    repository.commit("turns")
    log = tmp_path / "log"
    code, out, error = repository.gate("--base", "HEAD", SHAM_LOG=str(log))
    assert code == 0 and "8 rounds of one process per side, measuring in turn" in error, error
    first, second = ([line for line in log.read_text().splitlines() if f"-00{n}.json" in line] for n in (1, 2))
    said = [[line.replace(".json", "") for line in lines if line.startswith("t")] for lines in (first, second)]
    assert said[0][:4] == ["turn base-001", "turn head-001", "turn head-001", "turn base-001"]
    assert said[1][:4] == ["turn head-002", "turn base-002", "turn base-002", "turn head-002"]
    assert [line.split()[0] for line in said[0][4:]] == ["through", "through"], "none leaves beside the other's turn"
    repository.write({"mood.txt": "turns dies-in-turn"})
    code, out, error = repository.gate("--base", "HEAD")
    assert code == 1 and "flash no longer runs (failed: exit code 1: it died in its turn)" in last(out), error


def test_a_base_that_knows_of_no_turns_is_measured_before_head_or_after(repository: Repository) -> None:
    repository.write({"mood.txt": "turns"})
    code, _, error = repository.gate("--base", "HEAD")
    assert code == 0 and "in turn" not in error, error


def test_a_case_that_only_informs_is_timed_where_all_are(repository: Repository) -> None:
    inform = '[thresholds.cases."efficient"]\nlatency = "inform"\n'
    repository.write({"gate.toml": (repository.folder / "gate.toml").read_text() + inform, "factor.txt": "1.2"})
    _, out, _ = repository.gate("--base", "HEAD")
    assert "not timed, for it would only inform: efficient (--all times it too)" in " ".join(out.split())
    _, out, _ = repository.gate("--base", "HEAD", "--all")
    assert "not timed" not in out and "efficient" in out
