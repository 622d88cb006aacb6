"""CUPTI's C interface against its own headers and library, from a package, without a GPU.

The headers are compiled by a C compiler, which tells every offset and size; the library is asked, in a child process,
for the number of passes. What follows a GPU is played by a library written here, which keeps the order of the calls.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from repshift_cli.counters import cupti
from repshift_cli.counters.base import cupti_abi as abi
from repshift_cli.counters.base.traffic import CounterError, Traffic

PACKAGE = "nvidia-cuda-cupti"
OLDEST, NEWER = "13.0.85", "13.2.86"
"""The version that the structures are transcribed from, and one that has appended fields since."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder include/ and lib/ of a version of the package, each fetched once per run."""
    found: dict[str, Path | str] = {}

    def fetch(version: str) -> Path:
        if version not in found:
            found[version] = _fetched(version, tmp_path_factory.mktemp("cupti"))
        place = found[version]
        if isinstance(place, str):
            pytest.skip(place)
        return place

    return fetch


def _fetched(version: str, place: Path) -> Path | str:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(place)]
    if wheels := os.environ.get("REPSHIFT_WHEELS"):
        command += ["--find-links", wheels]
    done = subprocess.run([*command, f"{PACKAGE}=={version}"], capture_output=True, text=True)
    wheel = next(place.glob("*.whl"), None)
    if wheel is None:
        return f"{PACKAGE} {version} cannot be downloaded: {done.stderr.strip()[-200:]}"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return next(place.glob("nvidia/*/include")).parent


# --- layouts ----------------------------------------------------------------------------------------------------------

HEADERS = ("cupti_result", "cupti_target", "cupti_profiler_target", "cupti_profiler_host", "cupti_range_profiler")
PROGRAM = """#include <stdio.h>
#include <stddef.h>
{includes}
int main(void) {{
{lines}
return 0;
}}
"""
FIELD = 'printf("{c}.{f} %zu %zu\\n", offsetof({c}, {f}), sizeof((({c}*)0)->{f}));'
SIZE = 'printf("{c} %zu %zu\\n", (size_t){c}_STRUCT_SIZE, sizeof({c}));'
CONSTANT = 'printf("{name} %zu 0\\n", (size_t){name});'
CONSTANTS = {
    "CUPTI_UserRange": abi.USER_RANGE,
    "CUPTI_UserReplay": abi.USER_REPLAY,
    "CUPTI_PROFILER_TYPE_RANGE_PROFILER": abi.RANGE_PROFILER,
    "CUPTI_ERROR_INVALID_METRIC_NAME": 17,
    "CUPTI_ERROR_INVALID_PARAMETER": 1,
    "CUPTI_ERROR_INVALID_OPERATION": 7,
    "CUPTI_ERROR_OUT_OF_MEMORY": 8,
    "CUPTI_ERROR_NOT_INITIALIZED": 15,
    "CUPTI_ERROR_HARDWARE_BUSY": 26,
    "CUPTI_ERROR_NOT_SUPPORTED": 27,
    "CUPTI_ERROR_VIRTUALIZED_DEVICE_NOT_SUPPORTED": 33,
    "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES": 35,
    "CUPTI_ERROR_LEGACY_PROFILER_NOT_SUPPORTED": 38,
    "CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED": 39,
    "CUPTI_ERROR_VIRTUALIZED_DEVICE_INSUFFICIENT_PRIVILEGES": 40,
    "CUPTI_ERROR_CONFIDENTIAL_COMPUTING_NOT_SUPPORTED": 41,
    "CUPTI_ERROR_CMP_DEVICE_NOT_SUPPORTED": 42,
    "CUPTI_ERROR_MIG_DEVICE_NOT_SUPPORTED": 43,
    "CUPTI_ERROR_SLI_DEVICE_NOT_SUPPORTED": 44,
    "CUPTI_ERROR_WSL_DEVICE_NOT_SUPPORTED": 45,
    "CUPTI_ERROR_INVALID_CHIP_NAME": 46,
    "CUPTI_ERROR_UNKNOWN": 999,
}


def compiled(include: Path, place: Path) -> dict[str, tuple[int, int]]:
    """What the C compiler says: offset and size by `Struct.field`, STRUCT_SIZE and sizeof by `Struct`, constants."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (place / "string").write_text("/* the headers of 13.0 ask for C++'s, and use nothing of it */")
    (place / "cuda.h").write_text("#define CUPTIAPI\ntypedef struct CUctx_st *CUcontext;\ntypedef int CUdevice;\n")
    lines = [CONSTANT.format(name=name) for name in CONSTANTS]
    for kind in abi.FUNCTIONS:
        lines += [SIZE.format(c=kind.C_NAME)]
        lines += [FIELD.format(c=kind.C_NAME, f=name) for name, _ in kind._fields_]
    includes = "\n".join(f"#include <{name}.h>" for name in ("cuda", *HEADERS))
    (place / "layout.c").write_text(PROGRAM.format(includes=includes, lines="\n".join(lines)))
    program = str(place / "layout")
    command = [compiler, "-I", str(place), "-I", str(include), str(place / "layout.c"), "-o", program]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    told = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return {name: (int(first), int(second)) for name, first, second in map(str.split, told.splitlines())}


@pytest.mark.parametrize("version", [OLDEST, NEWER])
def test_structures_lie_as_the_compiler_lays_them(folder: Callable[[str], Path], version: str, tmp_path: Path) -> None:
    told = compiled(folder(version) / "include", tmp_path)
    for kind in abi.FUNCTIONS:
        for name, _ in kind._fields_:
            field = getattr(kind, name)
            assert told[f"{kind.C_NAME}.{name}"] == (field.offset, field.size), f"{kind.C_NAME}.{name}"
        size, whole = told[kind.C_NAME]
        if version == OLDEST:
            assert (abi.struct_size(kind), ctypes.sizeof(kind)) == (size, whole), kind.C_NAME
        else:
            assert abi.struct_size(kind) <= size, f"{kind.C_NAME} has lost fields"
    assert {name: told[name][0] for name in CONSTANTS} == CONSTANTS


def test_every_error_in_words_is_one_that_was_looked_up() -> None:
    assert set(abi.ERRORS) <= set(CONSTANTS.values())


def test_a_structure_size_is_without_the_padding_at_its_end() -> None:
    assert (abi.struct_size(abi.SetConfig), ctypes.sizeof(abi.SetConfig)) == (90, 96)
    assert (abi.struct_size(abi.Stop), ctypes.sizeof(abi.Stop)) == (41, 48)


# --- the library, without a GPU ---------------------------------------------------------------------------------------

ASK = """
import json, sys
from pathlib import Path
from repshift_cli.counters import cupti
from repshift_cli.counters.base import cupti_abi as abi
library = abi.load(Path(sys.argv[1]))
found = {"missing": [f for f in abi.FUNCTIONS.values() if not hasattr(library, f)]}
for chip in sys.argv[2:]:
    try:
        host = cupti.Host(library, chip.encode())
        found[chip] = host.passes()
        host.close()
    except abi.CuptiError as error:
        found[chip] = str(error)
cupti.METRICS = (b"dram__no_such_metric.sum",)
try:
    cupti.Host(library, b"GH100")
except abi.CuptiError as error:
    found["metric"] = error.code
print(json.dumps(found))
"""


def test_the_metrics_need_one_pass_on_hopper_and_ampere(folder: Callable[[str], Path]) -> None:
    library = folder(OLDEST) / "lib" / "libcupti.so.13"
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(library), "GH100", "GA100", "NONE"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
    found = json.loads(done.stdout)
    assert found["missing"] == []
    assert (found["GH100"], found["GA100"]) == (1, 1)
    assert "does not know this chip" in found["NONE"]
    assert found["metric"] == 1, "an unknown metric is an invalid parameter to 13.0, not error 17"


def test_the_library_is_found_beside_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "nvidia" / "cu13" / "lib"
    place.mkdir(parents=True)
    for name in ("libcupti.so.13", "libcupti.so.13.bak", "libnvperf_host.so"):
        (place / name).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert cupti.find_library() == place / "libcupti.so.13"
    (place / "libcupti.so.13").rename(place / "libcupti.so.2025.3.1")  # as a toolkit names it
    assert cupti.find_library() == place / "libcupti.so.2025.3.1"
    monkeypatch.setattr(sys, "path", [])
    assert cupti.find_library() is None
    assert cupti.unavailable("cuda") == (
        "libcupti.so is not found; it comes with the CUDA builds of torch (package nvidia-cuda-cupti)"
    )


# --- the order of the calls -------------------------------------------------------------------------------------------


class FakeLibrary:
    """Answers every function as CUPTI would on a GPU that moves 5 bytes up and 7 down, and keeps what was asked."""

    def __init__(self, **told: Any) -> None:
        self.told = {
            "passes": 1,
            "submitted": 1,
            "dropped": 0,
            "ranges": 1,
            "refuse_with_image": False,
            "fail": {},
        } | told
        self.calls: list[str] = []
        self.configured = 0
        self.asked: dict[str, Any] = {}
        self.images: list[Any] = []

    def __getattr__(self, function: str) -> Any:
        kind = next((k for k, f in abi.FUNCTIONS.items() if f == function), None)
        if kind is None or function in self.told.get("lacks", ()):
            raise AttributeError(function)

        def answer(reference: Any) -> int:
            params = reference._obj
            assert isinstance(params, kind) and params.structSize == abi.struct_size(kind) and params.pPriv is None
            self.calls.append(function)
            self.asked[function] = params
            if function == "cuptiRangeProfilerEnable":
                self.configured = 0
            self.configured += function == "cuptiRangeProfilerSetConfig"
            if self.configured > self.told.get("configurations", 9):
                return 7
            return self.told["fail"].get(function, 0) or self._fill(function, params)

        return answer

    def _fill(self, function: str, params: Any) -> int:
        told = self.told
        out: dict[str, dict[str, Any]] = {
            "cuptiDeviceGetChipName": {"pChipName": b"GH100"},
            "cuptiProfilerGetCounterAvailability": {"counterAvailabilityImageSize": 16},
            "cuptiProfilerHostInitialize": {"pHostObject": 77},
            "cuptiProfilerHostGetConfigImageSize": {"configImageSize": 32},
            "cuptiProfilerHostGetNumOfPasses": {"numOfPasses": told["passes"]},
            "cuptiRangeProfilerEnable": {"pRangeProfilerObject": 88},
            "cuptiRangeProfilerGetCounterDataSize": {"counterDataSize": 64},
            "cuptiRangeProfilerStop": {"isAllPassSubmitted": told["submitted"]},
            "cuptiRangeProfilerDecodeData": {"numOfRangeDropped": told["dropped"]},
            "cuptiRangeProfilerGetCounterDataInfo": {"numTotalRanges": told["ranges"]},
        }
        for name, value in out.get(function, {}).items():
            setattr(params, name, value)
        if function == "cuptiProfilerHostInitialize":
            self.images.append(params.pCounterAvailabilityImage)
        if function == "cuptiProfilerHostConfigAddMetrics":
            assert [params.ppMetricNames[i] for i in range(params.numMetrics)] == list(cupti.METRICS)
            return 1 if told["refuse_with_image"] and self.images[-1] else 0
        if function == "cuptiProfilerHostEvaluateToGpuValues":
            assert (params.rangeIndex, params.numMetrics, params.counterDataImageSize) == (0, 2, 64)
            params.pMetricValues[0], params.pMetricValues[1] = 5.0, 7.0
        return 0


def counted(library: FakeLibrary) -> list[float]:
    events = library.calls
    with cupti.RangeProfiler(library, ctypes.c_void_p(1), 0, lambda: events.append("synchronize")) as profiler:
        return profiler.count(lambda: events.append("forward"))


def test_the_calls_come_in_cuptis_order() -> None:
    library = FakeLibrary()
    assert counted(library) == [5.0, 7.0]
    host, ranges = "cuptiProfilerHost", "cuptiRangeProfiler"
    assert library.calls == [
        "cuptiProfilerInitialize",
        "cuptiDeviceGetChipName",
        *["cuptiProfilerGetCounterAvailability"] * 2,
        f"{host}Initialize",
        f"{host}ConfigAddMetrics",
        f"{host}GetConfigImageSize",
        f"{host}GetConfigImage",
        f"{host}GetNumOfPasses",
        f"{ranges}Enable",
        f"{ranges}GetCounterDataSize",
        f"{ranges}CounterDataImageInitialize",
        f"{ranges}SetConfig",
        f"{ranges}Start",
        "synchronize",
        f"{ranges}PushRange",
        "forward",
        "synchronize",
        f"{ranges}PopRange",
        f"{ranges}Stop",
        f"{ranges}DecodeData",
        f"{ranges}GetCounterDataInfo",
        f"{host}EvaluateToGpuValues",
        f"{ranges}Disable",
        f"{host}Deinitialize",
    ]
    config = library.asked["cuptiRangeProfilerSetConfig"]
    told = (config.range, config.replayMode, config.maxRangesPerPass, config.numNestingLevels, config.minNestingLevel)
    assert told == (2, 3, 1, 1, 1)
    assert (config.passIndex, config.targetNestingLevel, config.configSize, config.counterDataImageSize) == (
        0,
        1,
        32,
        64,
    )
    assert (config.pRangeProfilerObject, library.asked["cuptiProfilerHostInitialize"].profilerType) == (88, 0)
    size = library.asked["cuptiRangeProfilerGetCounterDataSize"]
    assert (size.maxNumOfRanges, size.maxNumRangeTreeNodes, size.numMetrics) == (1, 1, 2)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ({"passes": 2}, "need 2 passes on GH100"),
        ({"submitted": 0}, "wants the work replayed"),
        ({"dropped": 1}, "dropped 1 ranges"),
        ({"ranges": 0}, "recorded 0 ranges instead of 1"),
        ({"fail": {"cuptiProfilerInitialize": 15}}, r"the driver is too old .* \(cuptiProfilerInitialize gave 15\)"),
        ({"fail": {"cuptiRangeProfilerEnable": 35}}, "NVreg_RestrictProfilingToAdminUsers=0"),
        ({"fail": {"cuptiRangeProfilerEnable": 26}}, "in use by another program, such as DCGM"),
        ({"fail": {"cuptiRangeProfilerSetConfig": 43}}, "not supported on a MIG device"),
        ({"fail": {"cuptiRangeProfilerStart": 5}}, r"failed \(cuptiRangeProfilerStart gave 5\)"),
        ({"lacks": ("cuptiRangeProfilerEnable",)}, "has no cuptiRangeProfilerEnable: it is older than CUDA 12.6"),
    ],
)
def test_what_goes_wrong_is_told(told: dict[str, Any], reason: str) -> None:
    with pytest.raises(CounterError, match=reason):
        counted(FakeLibrary(**told))


def test_a_profiler_that_takes_one_configuration_alone_is_enabled_anew() -> None:
    library = FakeLibrary(configurations=1)
    with cupti.RangeProfiler(library, ctypes.c_void_p(1), 0, lambda: None) as profiler:
        assert [profiler.count(lambda: None) for _ in range(3)] == [[5.0, 7.0]] * 3
    assert library.calls.count("cuptiRangeProfilerEnable") == library.calls.count("cuptiRangeProfilerDisable") == 3


def test_an_availability_image_without_dram_counters_is_done_without() -> None:
    library = FakeLibrary(refuse_with_image=True)
    assert counted(library) == [5.0, 7.0]
    assert [bool(image) for image in library.images] == [True, False]
    assert library.calls.count("cuptiProfilerHostDeinitialize") == 2


def test_the_image_lives_for_as_long_as_cupti_holds_its_pointer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until another is configured, or until the profiler is disabled."""
    images: list[Any] = []
    made = cupti.RangeProfiler._counter_data

    def watched(self: Any) -> Any:
        image = made(self)
        images.append(weakref.ref(image))
        return image

    monkeypatch.setattr(cupti.RangeProfiler, "_counter_data", watched)
    with cupti.RangeProfiler(FakeLibrary(), ctypes.c_void_p(1), 0, lambda: None) as profiler:
        profiler.count(lambda: None)
        assert images[0]() is not None
        profiler.count(lambda: None)
        assert images[1]() is not None


def test_the_child_counts_in_the_context_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's index and the driver's current context reach CUPTI."""
    from types import SimpleNamespace

    library = FakeLibrary()
    cuda = SimpleNamespace(synchronize=lambda: None, current_device=lambda: 3)
    torch = SimpleNamespace(zeros=lambda *_, device: None, cuda=cuda)
    monkeypatch.setattr(cupti.devices, "import_torch", lambda: torch)
    monkeypatch.setattr(cupti, "find_library", lambda: Path("libcupti.so.13"))
    monkeypatch.setattr(abi, "load", lambda path: library)
    monkeypatch.setattr(cupti, "_current_context", lambda: ctypes.c_void_p(9))
    with cupti.counting("cuda:3") as count:
        values = [count(lambda: None), count(lambda: None)]
    assert cupti.collect(values, Path(), 2) == [Traffic.of(5, 7)] * 2
    assert library.asked["cuptiDeviceGetChipName"].deviceIndex == 3
    assert library.asked["cuptiRangeProfilerEnable"].ctx == 9
    assert library.calls.count("cuptiRangeProfilerEnable") == library.calls.count("cuptiRangeProfilerDisable") == 1
