"""What the machine tells, with torch's devices and NVML played by fakes."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from repshift_cli import machine
from repshift_cli.machine import Check, Reading, Watch, checks, choose_device, describe
from repshift_cli.records import Machine, UsageError

UUIDS = ("1111-aa", "2222-bb")


class FakeNvml(ModuleType):
    """Just enough of pynvml: two GPUs, in the reverse of torch's order."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, events: int = 0, refuse: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.events, self.refuse = events, refuse

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.refuse:
            raise RuntimeError("Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in [f"GPU-{u}" for u in UUIDS]:
            raise RuntimeError("Not Found")
        return uuid

    def nvmlDeviceGetMaxClockInfo(self, handle: str, clock: int) -> int:
        return self._answer("max", {1: 1980, 2: 2619}[clock])

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:
        return self._answer("clock", {1: 1410, 2: 2619}[clock])

    def nvmlDeviceGetTemperatureV(self, handle: str, sensor: int) -> int:
        return self._answer("temperature", 41)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 40

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._answer("power", 123456)

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
        return self._answer("events", self.events)


def fake_torch(devices: int = 2, cuda: str | None = "13.0") -> Any:
    names = [SimpleNamespace(uuid=u, name=f"GPU {u}", major=9, minor=0, total_memory=80 * 2**30) for u in UUIDS]
    api = SimpleNamespace(
        is_available=lambda: devices > 0,
        device_count=lambda: devices,
        get_device_properties=lambda index: names[index],
        init=lambda: (_ for _ in ()).throw(RuntimeError("Found no NVIDIA driver\non your system.")),
    )
    return SimpleNamespace(
        __version__="2.13.0", cuda=api, version=SimpleNamespace(cuda=cuda), get_num_threads=lambda: 3
    )


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(machine, "_torch", fake_torch)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(machine, "_torch", lambda: fake_torch(devices=0, cuda=None))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(refuse=("init",)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch


# --- choosing ---------------------------------------------------------------------------------------------------------


def test_auto_is_cuda_where_there_is_any(two_gpus: pytest.MonkeyPatch) -> None:
    assert [choose_device(d) for d in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]


def test_auto_is_the_cpu_elsewhere(no_gpu: pytest.MonkeyPatch) -> None:
    assert choose_device("auto") == "cpu"


def test_cuda_is_refused_with_the_reason(no_gpu: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^CUDA was asked for, but this torch \(2.13.0\) is built without CUDA"):
        choose_device("cuda")
    no_gpu.setattr(machine, "_torch", lambda: fake_torch(devices=0))
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
    assert machine.nvml_handle("cuda:1")[1] == "GPU-2222-bb"
    assert machine.nvml_handle("cuda")[1] == "GPU-1111-aa"


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
    assert not set(found.missing) & set(machine.GPU_FIELDS)


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


# --- the doctor -------------------------------------------------------------------------------------------------------


def check(name: str) -> Check:
    return next(c for c in checks() if c.name == name)


def test_the_doctor_reads_a_gpu(two_gpus: pytest.MonkeyPatch) -> None:
    assert check("GPU") == Check("GPU", True, "GPU 1111-aa, 80 GiB, sm_90, CUDA 13.0")
    assert check("driver") == Check("driver", True, "580.1")
    assert check("NVML").detail == "SM 1410 MHz, memory 2619 MHz, 41 C, 123 W"


def test_the_doctor_says_how_to_get_what_is_missing(no_gpu: pytest.MonkeyPatch) -> None:
    missing = [c for c in checks() if not c.ok]
    assert {"GPU", "driver", "NVML"} <= {c.name for c in missing}
    assert [c.name for c in missing if not c.remedy] == []


def test_the_doctor_survives_a_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libfoo.so: cannot open\nshared object file")

    monkeypatch.setattr(machine, "_torch", broken)
    assert check("torch").detail == "cannot be imported: libfoo.so: cannot open shared object file"
    assert check("GPU").ok is False


@pytest.mark.parametrize(
    ("text", "admin", "ok", "words"),
    [
        ("RmProfilingAdminOnly: 0\n", False, True, "open to every user"),
        ("A: 3\nRmProfilingAdminOnly: 1\n", False, False, "RmProfilingAdminOnly: 1"),
        ("RmProfilingAdminOnly: 1\n", True, True, "this process is one"),
        (None, False, None, "cannot be told"),
    ],
)
def test_the_counters_permission(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, admin: bool, ok: bool | None, words: str
) -> None:
    path = tmp_path / "params"
    if text:
        path.write_text(text)
    monkeypatch.setattr(machine, "NVIDIA_PARAMETERS", path)
    monkeypatch.setattr(machine, "_is_admin", lambda: admin)
    found = machine._check_counters()
    assert (found.ok, words in found.detail) == (ok, True)
    assert ok or found.remedy


def test_a_namespace_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn-4 alone leaves a folder flash_attn without a module file: flash-attn 2 is not there then."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert (check("flash-attn 2").ok, check("flash-attn 4").ok) == (False, True)


@pytest.mark.gpu
def test_a_real_gpu_is_described_and_watched() -> None:
    found = describe("cuda")
    assert found.uuid is not None and found.uuid.startswith(("GPU-", "MIG-"))
    assert found.capability and found.device_memory
    watch = Watch("cuda")
    reading = watch.sample()
    assert watch.reason or (reading and reading.sm_clock)
