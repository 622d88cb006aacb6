"""The viewers for real: TensorBoard with torch-tb-profiler over HTTP, HolisticTraceAnalysis on what we write."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_chrome_trace import two_variants
from test_profile import PRUNED, step_of
from tiny import case

from repshift_cli.profiling import chrome_trace, digest
from repshift_cli.profiling import recorder as probe
from repshift_cli.records.profile import Breakdown, ProfileRun

Get = Callable[..., Any]


@contextmanager
def tensorboard(folder: Path) -> Iterator[Get]:
    """A server on the folder; `get(path, **query)` asks the plugin once it has loaded all runs."""
    pytest.importorskip("torch_tb_profiler", reason="torch-tb-profiler is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]

    def get(path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/data/plugin/pytorch_profiler/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)

    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _wait_for_runs(server, get)
            yield get
        finally:
            server.terminate()


def _wait_for_runs(server: subprocess.Popen[bytes], get: Get) -> None:
    for _ in range(600):
        assert server.poll() is None, "TensorBoard stopped"
        try:
            if not get("runs")["loading"]:
                return
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.1)
    raise AssertionError("TensorBoard did not load the runs within a minute")


def asked(get: Get, path: str, run: str, view: str, **query: str) -> Any:
    return get(path, run=run, worker="repshift", span="1", view=view, **query)


def write_all(folder: Path, recorded: list[chrome_trace.Recorded]) -> None:
    for one in recorded:
        (folder / one.name).mkdir(parents=True)
        chrome_trace.write_for_tensorboard(folder / one.name / "repshift.1700000000000.pt.trace.json", one)


@pytest.mark.slow
def test_the_plugin_shows_a_recorded_cpu_trace_with_our_figures(tmp_path: Path) -> None:
    step = step_of(tiny.vit(), case(**PRUNED))
    probe.record(step, tmp_path / "t.json", 3)
    found, one = digest.digest(Breakdown("flash+repshift", step.case), tmp_path / "t.json")
    write_all(tmp_path / "tb", [one])
    with tensorboard(tmp_path / "tb") as get:
        assert get("runs")["runs"] == ["flash+repshift"]
        overview = asked(get, "overview", "flash+repshift", "Overview")
        assert len(overview["steps"]["rows"]) == 3
        rows = asked(get, "operation/table", "flash+repshift", "Operator", group_by="Operation")["data"]
    theirs = {row["name"]: row for row in rows}
    nested_in_itself = "aten::sort"  # the plugin counts such a call once
    for op in found.ops:
        assert theirs[op.name]["calls"] == 3 * op.calls or op.name == nested_in_itself
    largest = found.ops[0]
    assert theirs[largest.name]["host_self_duration"] == pytest.approx(3000 * largest.host_ms, rel=0.02, abs=5)


@pytest.mark.slow
def test_the_plugin_shows_device_times_with_our_figures(tmp_path: Path) -> None:
    run, recorded = two_variants(tmp_path)
    write_all(tmp_path / "tb", recorded)
    with tensorboard(tmp_path / "tb") as get:
        assert get("runs")["runs"] == ["flash", "flash+repshift"]
        for b in run.breakdowns:
            steps = asked(get, "overview", b.name, "Overview")["steps"]
            kernel = [c["name"] for c in steps["columns"] if c["type"] == "number"].index("Kernel")
            assert b.busy_ms and steps["rows"][0][1 + 2 * kernel] == pytest.approx(1000 * b.busy_ms, abs=1)
            rows = asked(get, "operation/table", b.name, "Operator", group_by="Operation")["data"]
            theirs = {row["name"]: row["device_self_duration"] for row in rows}
            assert {o.name: theirs[o.name] for o in b.ops} == {o.name: round(2000 * (o.device_ms or 0)) for o in b.ops}
            rows = asked(get, "kernel/table", b.name, "Kernel", group_by="Kernel")["data"]["rows"]
            assert {r[0]: (r[2], r[3]) for r in rows} == {k.name: (2 * k.calls, round(2000 * k.ms)) for k in b.kernels}


# --- HolisticTraceAnalysis --------------------------------------------------------------------------------------------


def analysed(path: Path) -> Any:
    module = pytest.importorskip(
        "hta.trace_analysis", reason="HolisticTraceAnalysis is not installed (it brings JupyterLab)"
    )
    return module.TraceAnalysis(trace_files={0: str(path)})


def test_hta_opens_a_cpu_trace(tmp_path: Path) -> None:
    step = step_of(tiny.vit(), case(**PRUNED))
    probe.record(step, tmp_path / "r.json", 3)
    about = Breakdown("flash+repshift", step.case)
    found, one = digest.digest(about, tmp_path / "r.json")
    chrome_trace.write(tmp_path / "t.json.gz", [one], digest.metadata(ProfileRun(None, {}, (found,))))
    analysis = analysed(tmp_path / "t.json.gz")
    assert [int(n) for n in analysis.get_profiler_steps()] == [1, 2], "it leaves the last step out"
    names = analysis.t.symbol_table.get_sym_table()
    seen = [names[i] for i in analysis.t.get_trace(0)["name"]]
    assert seen.count("repshift/score") == 2
    assert seen.count("aten::addmm") == 2 * next(o.calls for o in found.ops if o.name == "aten::addmm")


def test_hta_finds_our_device_times(tmp_path: Path) -> None:
    run, recorded = two_variants(tmp_path)
    alone = ProfileRun(run.machine, {}, run.breakdowns[1:])
    chrome_trace.write(tmp_path / "t.json", recorded[1:], digest.metadata(alone))
    _, kernels = analysed(tmp_path / "t.json").get_gpu_kernel_breakdown(visualize=False)
    theirs = dict(zip(kernels["name"], kernels["sum (us)"], strict=True))
    ours = {k.name: round(1000 * k.ms) for k in alone.breakdowns[0].kernels}
    assert {name: round(us) for name, us in theirs.items()} == ours, "of one step: it leaves the last one out"
