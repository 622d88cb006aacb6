"""What the machine tells, with torch's devices and NVML played by fakes."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fake_machine import FakeNvml, fake_torch

from repshift_cli.machine import device as devices
from repshift_cli.machine import nvml, packages
from repshift_cli.machine.describe import GPU_FIELDS, describe
from repshift_cli.machine.device import choose_device
from repshift_cli.machine.nvml import Reading, Watch
from repshift_cli.records import Machine, UsageError

# --- choosing ---------------------------------------------------------------------------------------------------------


def test_auto_is_cuda_where_there_is_any(two_gpus: pytest.MonkeyPatch) -> None:
    assert [choose_device(d) for d in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]


def test_auto_is_the_cpu_elsewhere(no_gpu: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == "cpu"


def test_cuda_is_refused_with_the_reason(no_gpu: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^CUDA was asked for, but this torch \(2.13.0\) is built without CUDA"):
        choose_device("cuda")
    no_gpu.setattr(devices, "import_torch", lambda: fake_torch(devices=0))
    with pytest.raises(UsageError, match=r"but torch finds no usable GPU: Found no NVIDIA driver on your system\."):
        choose_device("cuda:0")
    no_gpu.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES hides every GPU"):
        choose_device("cuda")


def test_a_device_that_is_not_there_is_refused(two_gpus: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="there is no cuda:2: the last device here is cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "mps", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="choose auto, cpu, cuda"):
        choose_device(name)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_torch_and_nvml_meet_by_uuid(two_gpus: pytest.MonkeyPatch) -> None:
    assert nvml.nvml_handle("cuda:1")[1] == "GPU-2222-bb"
    assert nvml.nvml_handle("cuda")[1] == "GPU-1111-aa"
    assert nvml.nvml_handle("cuda:2")[1] == "MIG-3333-cc"
    with pytest.raises(nvml.NoNvml, match="does not know the device GPU-4444-dd"):
        nvml.nvml_handle("cuda:3")


def test_a_watch_reads_the_clocks(two_gpus: pytest.MonkeyPatch) -> None:
    watch = Watch("cuda")
    assert watch.reason is None
    assert watch.sample() == Reading(1410, 2619, 41, 123.456, (), False)


@pytest.mark.parametrize(
    ("events", "words", "hardware"),
    [
        (0x1, (), False),
        (0x4, ("software power cap",), False),
        (0x20, ("software thermal slowdown",), False),
        (0x8, ("hardware slowdown",), True),
        (0x40, ("hardware thermal slowdown",), True),
        (0x80, ("hardware power brake",), True),
        (0x4 | 0x80, ("software power cap", "hardware power brake"), True),
    ],
)
def test_throttling_is_told_in_words(
    two_gpus: pytest.MonkeyPatch, events: int, words: tuple[str, ...], hardware: bool
) -> None:
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(events))
    reading = Watch("cuda").sample()
    assert reading is not None
    assert (reading.throttle, reading.hardware_throttled) == (words, hardware)


def test_what_a_device_does_not_tell_is_none(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(refuse=("clock", "power", "events", "temperature")))
    assert Watch("cuda").sample() == Reading(None, None, 40, None)


def test_a_watch_without_nvml_says_why(two_gpus: pytest.MonkeyPatch) -> None:
    assert Watch("cpu").reason == "NVML reads GPUs, and this run is on the CPU"
    two_gpus.setitem(sys.modules, "pynvml", None)
    watch = Watch("cuda")
    assert watch.sample() is None
    assert watch.reason == "NVML needs the package nvidia-ml-py, which is not installed"
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(refuse=("init",)))
    assert Watch("cuda").reason == "NVML does not start: Not Supported"


# --- describing -------------------------------------------------------------------------------------------------------


def test_a_gpu_is_described(two_gpus: pytest.MonkeyPatch) -> None:
    found = describe("cuda:1")
    assert (found.device, found.device_name, found.uuid) == ("cuda:1", "GPU 2222-bb", "GPU-2222-bb")
    assert (found.driver, found.cuda, found.capability, found.device_memory) == ("580.1", "13.0", "9.0", 80 * 2**30)
    assert (found.sm_clock_max, found.memory_clock_max, found.threads) == (1980, 2619, 3)
    assert not set(found.missing) & set(GPU_FIELDS)


def test_what_nvml_does_not_tell_is_missing_with_the_reason(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(refuse=("init",)))
    found = describe("cuda")
    assert (found.device_name, found.driver, found.sm_clock_max) == ("GPU 1111-aa", None, None)
    assert found.missing["driver"] == "NVML does not start: Not Supported"


def test_every_unknown_field_has_a_reason(no_gpu: pytest.MonkeyPatch) -> None:
    found = describe("cpu")
    unknown = {name for name in Machine.__dataclass_fields__ if getattr(found, name) is None}
    assert unknown == set(found.missing)
    assert all(found.missing.values())
    assert found.device_name == found.cpu


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.hooksPath=/dev/null"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_commit_is_that_of_the_current_directory(
    no_gpu: pytest.MonkeyPatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "not a git checkout" in describe("cpu").missing["commit"]
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    clean = describe("cpu").commit
    (tmp_path / "file").write_text("2")
    assert clean is not None and len(clean) == 40
    assert describe("cpu").commit == f"{clean}+dirty"
    monkeypatch.setenv("PATH", "")
    assert describe("cpu").missing["commit"] == "git is not installed"


@pytest.mark.gpu
def test_a_real_gpu_is_described_and_watched() -> None:
    found = describe("cuda")
    assert found.uuid is not None and found.uuid.startswith(("GPU-", "MIG-"))
    assert found.capability and found.device_memory
    watch = Watch("cuda")
    reading = watch.sample()
    assert watch.reason or (reading and reading.sm_clock)


# --- how to get what is missing ---------------------------------------------------------------------------------------


def test_the_remedies_ask_for_what_the_extras_ask_for() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: tuple(needs) for name, needs in project["optional-dependencies"].items()}
    assert {name: needs for name, needs in extras.items() if name not in ("tested", "test")} == packages.EXTRAS


@pytest.mark.parametrize(
    ("torch", "command"),
    [
        ("2.13.0+cpu", "pip install --no-deps 'timm>=1.0.31' 'torchvision==0.28.*'"),
        ("2.11.0+cu130", "pip install --no-deps 'timm>=1.0.31' 'torchvision==0.26.*'"),
        ("", "pip install 'timm>=1.0.31'"),
    ],
)
def test_timm_is_got_without_another_torch(monkeypatch: pytest.MonkeyPatch, torch: str, command: str) -> None:
    monkeypatch.setattr(packages, "_version", lambda package: torch)
    assert packages.install("timm") == command
