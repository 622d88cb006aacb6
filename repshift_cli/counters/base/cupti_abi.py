"""CUPTI's C interface as far as the range profiler needs it: structures, error codes, loading.

Transcribed from cupti_result.h, cupti_target.h, cupti_profiler_target.h, cupti_profiler_host.h and
cupti_range_profiler.h of CUDA 13.0. Later versions (13.2 looked at) only append fields; `structSize` says how many the
caller knows, so these shorter structures stay valid. The tests hold every offset and size against a C compiler's.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int, c_size_t, c_uint8, c_uint16, c_uint32, c_void_p
from pathlib import Path
from typing import Any

from repshift_cli.counters.base.traffic import CounterError

USER_RANGE = 2
USER_REPLAY = 3
RANGE_PROFILER = 0

ERRORS = {
    1: "CUPTI refuses what it was given",
    7: "CUPTI refuses this now",
    8: "out of memory",
    15: "CUPTI did not start: the driver is too old for it, or libnvperf_host.so and libnvperf_target.so are not found",
    17: "this chip has no such metric",
    26: "the counters are in use by another program, such as DCGM (`dcgmi profile --pause` lets go of them)",
    27: "not supported on this device",
    33: "not supported on a virtual GPU",
    35: "no privilege to read the counters: run as root or with CAP_SYS_ADMIN, or set the driver option "
    "NVreg_RestrictProfilingToAdminUsers=0",
    38: "this GPU is not supported by the profiler (it needs Turing or later)",
    39: "another profiler holds CUPTI in this process",
    40: "the virtual GPU's host does not allow profiling",
    41: "not possible under confidential computing",
    42: "not supported on a mining card",
    43: "not supported on a MIG device",
    44: "not supported with SLI",
    45: "not supported in WSL",
    46: "CUPTI does not know this chip; a newer CUPTI may",
    999: "unknown error (CUPTI says no more)",
}
"""CUptiResult in words; the numbers are those of cupti_result.h."""


class Params(ctypes.Structure):
    """A CUPTI parameter structure; every one begins with its size and a private pointer that stays NULL."""

    C_NAME = ""


def _params(name: str, *fields: tuple[str, Any]) -> type[Params]:
    head = [("structSize", c_size_t), ("pPriv", c_void_p)]
    return type(name, (Params,), {"_fields_": [*head, *fields], "C_NAME": f"CUpti_{name}_Params"})


_host = ("pHostObject", c_void_p)
_profiler = ("pRangeProfilerObject", c_void_p)
_image = (("pCounterDataImage", c_void_p), ("counterDataImageSize", c_size_t))

Initialize = _params("Profiler_Initialize")
GetChipName = _params("Device_GetChipName", ("deviceIndex", c_size_t), ("pChipName", c_char_p))
GetCounterAvailability = _params(
    "Profiler_GetCounterAvailability",
    ("ctx", c_void_p),
    ("counterAvailabilityImageSize", c_size_t),
    ("pCounterAvailabilityImage", c_void_p),
)
HostInitialize = _params(
    "Profiler_Host_Initialize",
    ("profilerType", c_int),
    ("pChipName", c_char_p),
    ("pCounterAvailabilityImage", c_void_p),
    _host,
)
HostDeinitialize = _params("Profiler_Host_Deinitialize", _host)
HostConfigAddMetrics = _params(
    "Profiler_Host_ConfigAddMetrics", _host, ("ppMetricNames", POINTER(c_char_p)), ("numMetrics", c_size_t)
)
HostGetConfigImageSize = _params("Profiler_Host_GetConfigImageSize", _host, ("configImageSize", c_size_t))
HostGetConfigImage = _params(
    "Profiler_Host_GetConfigImage", _host, ("configImageSize", c_size_t), ("pConfigImage", c_void_p)
)
HostGetNumOfPasses = _params(
    "Profiler_Host_GetNumOfPasses",
    ("configImageSize", c_size_t),
    ("pConfigImage", c_void_p),
    ("numOfPasses", c_size_t),
)
HostEvaluate = _params(
    "Profiler_Host_EvaluateToGpuValues",
    _host,
    *_image,
    ("rangeIndex", c_size_t),
    ("ppMetricNames", POINTER(c_char_p)),
    ("numMetrics", c_size_t),
    ("pMetricValues", POINTER(c_double)),
)
Enable = _params("RangeProfiler_Enable", ("ctx", c_void_p), _profiler)
Disable = _params("RangeProfiler_Disable", _profiler)
SetConfig = _params(
    "RangeProfiler_SetConfig",
    _profiler,
    ("configSize", c_size_t),
    ("pConfig", c_void_p),
    ("counterDataImageSize", c_size_t),
    ("pCounterDataImage", c_void_p),
    ("range", c_int),
    ("replayMode", c_int),
    ("maxRangesPerPass", c_size_t),
    ("numNestingLevels", c_uint16),
    ("minNestingLevel", c_uint16),
    ("passIndex", c_size_t),
    ("targetNestingLevel", c_uint16),
)
Start = _params("RangeProfiler_Start", _profiler)
Stop = _params(
    "RangeProfiler_Stop",
    _profiler,
    ("passIndex", c_size_t),
    ("targetNestingLevel", c_size_t),
    ("isAllPassSubmitted", c_uint8),
)
PushRange = _params("RangeProfiler_PushRange", _profiler, ("pRangeName", c_char_p))
PopRange = _params("RangeProfiler_PopRange", _profiler)
DecodeData = _params("RangeProfiler_DecodeData", _profiler, ("numOfRangeDropped", c_size_t))
GetCounterDataSize = _params(
    "RangeProfiler_GetCounterDataSize",
    _profiler,
    ("pMetricNames", POINTER(c_char_p)),
    ("numMetrics", c_size_t),
    ("maxNumOfRanges", c_size_t),
    ("maxNumRangeTreeNodes", c_uint32),
    ("counterDataSize", c_size_t),
)
CounterDataImageInitialize = _params(
    "RangeProfiler_CounterDataImage_Initialize",
    _profiler,
    ("counterDataSize", c_size_t),
    ("pCounterData", c_void_p),
)
GetCounterDataInfo = _params("RangeProfiler_GetCounterDataInfo", *_image, ("numTotalRanges", c_size_t))

FUNCTIONS: dict[type[Params], str] = {
    Initialize: "cuptiProfilerInitialize",
    GetChipName: "cuptiDeviceGetChipName",
    GetCounterAvailability: "cuptiProfilerGetCounterAvailability",
    HostInitialize: "cuptiProfilerHostInitialize",
    HostDeinitialize: "cuptiProfilerHostDeinitialize",
    HostConfigAddMetrics: "cuptiProfilerHostConfigAddMetrics",
    HostGetConfigImageSize: "cuptiProfilerHostGetConfigImageSize",
    HostGetConfigImage: "cuptiProfilerHostGetConfigImage",
    HostGetNumOfPasses: "cuptiProfilerHostGetNumOfPasses",
    HostEvaluate: "cuptiProfilerHostEvaluateToGpuValues",
    Enable: "cuptiRangeProfilerEnable",
    Disable: "cuptiRangeProfilerDisable",
    SetConfig: "cuptiRangeProfilerSetConfig",
    Start: "cuptiRangeProfilerStart",
    Stop: "cuptiRangeProfilerStop",
    PushRange: "cuptiRangeProfilerPushRange",
    PopRange: "cuptiRangeProfilerPopRange",
    DecodeData: "cuptiRangeProfilerDecodeData",
    GetCounterDataSize: "cuptiRangeProfilerGetCounterDataSize",
    CounterDataImageInitialize: "cuptiRangeProfilerCounterDataImageInitialize",
    GetCounterDataInfo: "cuptiRangeProfilerGetCounterDataInfo",
}
"""Each structure with the function that takes a pointer to it and nothing else."""


class CuptiError(CounterError):
    """A CUPTI function failed; `code` is its CUptiResult."""

    def __init__(self, function: str, code: int) -> None:
        super().__init__(f"{ERRORS.get(code, 'failed')} ({function} gave {code})")
        self.code = code


def struct_size(kind: type[Params]) -> int:
    """What `structSize` must be: the end of the last field, without the padding that sizeof adds."""
    last = getattr(kind, kind._fields_[-1][0])
    return int(last.offset + last.size)


def load(path: Path) -> Any:
    """The library at `path`, with the two that it opens by bare name loaded from the same folder before it."""
    for name in ("libnvperf_host.so", "libnvperf_target.so"):
        if (path.parent / name).exists():
            ctypes.CDLL(str(path.parent / name), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def call(library: Any, kind: type[Params], **fields: Any) -> Any:
    """Call the function of a structure with these fields: the structure as the function left it, or CuptiError."""
    params = kind(structSize=struct_size(kind), **fields)
    function = FUNCTIONS[kind]
    if not hasattr(library, function):
        raise CounterError(f"this CUPTI has no {function}: it is older than CUDA 12.6")
    if code := getattr(library, function)(ctypes.byref(params)):
        raise CuptiError(function, int(code))
    return params
