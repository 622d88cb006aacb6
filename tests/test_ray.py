"""A Ray cluster of two nodes on this machine: who is lost, what travels, what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_workers import MODELS, NAME, ROOT, deterministic, environment, run, the_run

from repshift_cli.benchmark import parcel
from repshift_cli.records import UsageError, store

pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc"),
]
TINY_STORE = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / f"{NAME}.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """A cluster and the second of its nodes, which the last test takes away."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **TINY_STORE})
    try:
        yield cluster, cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    finally:
        cluster.shutdown()


@pytest.fixture
def found(two_nodes: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The cluster, which commands started here find."""
    monkeypatch.setenv("RAY_ADDRESS", two_nodes[0].address)
    return two_nodes


def command(*more: object, model: str = "ok", keeps: str = "0.25,0.375,0.5,0.625,0.75", rounds: int = 20) -> list[str]:
    options = ["--model", f"{NAME}:{model}", "--device", "cpu", "--keep", keeps, "--variant", "flash,flash+repshift"]
    options += ["--rounds", str(rounds), "--timing-only", "--out", "run.json", *map(str, more)]
    return [sys.executable, "-m", "repshift_cli", "bench", "--on", "ray", *options]


def agents() -> list[int]:
    """The workers of agents, wherever their node keeps them."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if (
                b"repshift_cli.benchmark.worker import" in line.read_bytes()
                and b"runtime_resources" in line.read_bytes()
            ):
                found.append(int(line.parent.name))
        except OSError:
            continue
    return found


def test_the_same_everywhere(here: Path) -> None:
    """In the command's process, in a worker, on a cluster made for it: all that no clock takes part in."""
    options = [
        a for a in command("--hbm", "model", rounds=2, keeps="0.5")[4:] if a not in ("--on", "ray", "--timing-only")
    ]
    ways = {"inline": ["--in-process"], "process": [], "ray": ["--on", "ray"]}
    made = {}
    for name, where in ways.items():
        arguments = [f"{name}.json" if a == "run.json" else a for a in options]
        done = run([sys.executable, "-m", "repshift_cli", "bench", *arguments, *where])
        assert done.returncode == 0, done.stderr
        made[name] = deterministic(store.load(Path(f"{name}.json")))
    assert made["inline"] == made["process"] == made["ray"]
    metrics = {metric for record in made["ray"].values() for metric, _ in record[3:]}
    assert {"macs", "fidelity_cosine"} <= metrics


def stored_records() -> tuple[Any, ...]:
    try:
        return the_run().records
    except UsageError:
        return ()


def test_interrupted_it_leaves_nobody_and_another_launcher_goes_on(here: Path, found: tuple[Any, Any]) -> None:
    running = subprocess.Popen(
        command(model="waits"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        until = time.monotonic() + 150
        while time.monotonic() < until and not stored_records():
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and "interrupted; " in errors and "Traceback" not in errors
    until = time.monotonic() + 10
    while agents() and time.monotonic() < until:
        time.sleep(0.1)
    assert not agents()
    before = the_run()
    assert 0 < len(before.records) < 6
    resume = [sys.executable, "-m", "repshift_cli", "bench", "--resume", "run.json", "--model", f"{NAME}:waits"]
    done = run([*resume, "--rounds", "2"])
    assert done.returncode == 2, "its own options apply"
    assert run(resume).returncode == 0
    after = {r.case: r for r in the_run().records}
    assert len(after) == 6 and all(after[r.case] == r for r in before.records)
    assert {r.place for r in after.values()} == {None, *the_run().machines}, "each says where it was made"


def test_a_kind_of_device_that_is_nowhere_is_a_sentence(here: Path, found: tuple[Any, Any]) -> None:
    done = run(command("--device-kind", "H100"))
    assert done.returncode == 2 and "and H100 was asked for (--device-kind)" in done.stderr
    assert not Path("run.json").exists() and "Traceback" not in done.stderr


def test_a_node_that_is_lost_costs_nothing_and_its_comparison_is_measured_elsewhere(
    here: Path, found: tuple[Any, Any]
) -> None:
    cluster, second = found
    running = subprocess.Popen(
        command("--parallel", 2, model="waits", keeps=",".join(str(n / 16) for n in range(4, 14)), rounds=20),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        until = time.monotonic() + 150
        while time.monotonic() < until and not {":0", ":1"} <= {(r.place or "")[-2:] for r in stored_records()}:
            time.sleep(0.1)
        before = stored_records()
        cluster.remove_node(second)
        _, errors = running.communicate(timeout=200)
    finally:
        running.kill()
    assert running.returncode == 0, errors
    after = {r.case: r for r in the_run().records}
    assert len(after) == 11 and {r.status for r in after.values()} == {"ok"}
    assert all(after[r.case] == r for r in before), "what was measured stays"
    later = [r for r in after.values() if r not in before]
    assert len({r.place for r in later}) == 1, "the node that is left measures the rest"
    (said,) = (w for w in the_run().warnings if "the machine was lost" in w)
    assert said.endswith("its comparison was measured again elsewhere")
    assert set(the_run().machines) == {r.place for r in after.values()}


# --- what travels (no cluster) ----------------------------------------------------------------------------------------


def opened(packed: parcel.Parcel, look: str) -> str:
    """What a fresh process in another folder sees once it has opened the parcel."""
    code = f"import pickle, sys; p = pickle.load(sys.stdin.buffer); p.open(); {look}"
    import pickle

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(packed),
        capture_output=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=100,
    )
    return done.stdout.decode() + done.stderr.decode()[-300:]


def test_code_and_small_files_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("import beside_it\nfrom .deep import x\n")
    (tmp_path / "own" / "deep.py").write_text("import torch\nx = 1\n")
    (tmp_path / "beside_it.py").write_text("import json\n")
    (tmp_path / "unrelated.py").write_text("")
    (tmp_path / "mine.toml").write_text('model = "own.deep:make"\n')
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.bin").write_bytes(b"abc")
    packed = parcel.packed(["mine.toml", "hf:weights"], [None, "random"])
    assert set(packed.modules) == {"own/__init__.py", "own/deep.py", "beside_it.py"}
    assert set(packed.contents) == set(packed.files) == {"mine.toml", "weights/a.bin"}
    see = "import os, own; print(os.getcwd(), open('weights/a.bin').read(), own.x)"
    assert opened(packed, see) == f"{tmp_path} abc 1\n", "where the folder is, it is used"
    os.utime(tmp_path / "weights" / "a.bin", (1, 1))
    seen = opened(packed, see)
    assert str(tmp_path) not in seen and seen.endswith(" abc 1\n"), "it is another's file: the sent one is used"


def test_what_cannot_travel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "big").write_bytes(b"12345")
    monkeypatch.setattr(parcel, "MOST_BYTES", 3)
    heavy = parcel.packed([], ["big"])
    far = parcel.packed([], [str(tmp_path / "big")])
    (tmp_path / "big").unlink()
    assert "big is not on every machine, and more than 256 MiB do not travel" in opened(heavy, "pass")
    assert "its path leads out of this folder" in opened(far, "pass")
