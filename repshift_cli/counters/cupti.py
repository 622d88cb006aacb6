"""DRAM bytes by CUPTI's range profiler (label `counter`): read and written, of exactly what runs in a range.

The metrics need one pass on GH100 and GA100, so nothing is replayed: the forward runs once, its caches and clocks as
they are. Order of calls after CUPTI's documentation, "Range Profiling API". It runs in a child process, because a CUPTI
that cannot start has been seen to crash. Written from the documentation; it has not yet run on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from repshift_cli.counters.base import cupti_abi as abi
from repshift_cli.counters.base.permission import why_not_allowed
from repshift_cli.counters.base.traffic import CounterError, Traffic
from repshift_cli.machine import device as devices

LABEL = "counter"
RANK = 1
METRICS = (b"dram__bytes_read.sum", b"dram__bytes_write.sum")
LIBRARY = re.compile(r"libcupti\.so(\.\d+)+$")
"""A package's file ends with CUDA's number (13), a toolkit's with its own (2025.3.1)."""


def unavailable(device: str) -> str | None:
    """Why CUPTI cannot count here, as far as that can be told without trying, or None."""
    if find_library() is None:
        return "libcupti.so is not found; it comes with the CUDA builds of torch (package nvidia-cuda-cupti)"
    return why_not_allowed()


def identity() -> str:
    """Which CUPTI counts."""
    return str(find_library())


def command(worker: Sequence[str], folder: Path) -> list[str]:
    """The child's command line: as it is."""
    return list(worker)


def collect(counted: Any, folder: Path, ranges: int) -> list[Traffic]:
    """The ranges that the child counted: [[read, written], ...]."""
    return [Traffic.of(read, written) for read, written in counted]


@contextlib.contextmanager
def counting(device: str) -> Iterator[Callable[[Callable[[], Any]], list[float]]]:
    """In the child: a function that runs some work in a range and gives its bytes read and written."""
    torch = devices.import_torch()
    torch.zeros(1, device=device)  # makes the CUDA context that CUPTI looks at
    torch.cuda.synchronize()
    library = find_library()
    if library is None:
        raise CounterError("libcupti.so is not found")
    index = torch.cuda.current_device()
    with RangeProfiler(abi.load(library), _current_context(), index, torch.cuda.synchronize) as profiler:
        yield profiler.count


def find_library() -> Path | None:
    """The libcupti that this process has loaded (torch's own), else the one of an installed package."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
            path = Path(line.split(maxsplit=5)[-1])
            if LIBRARY.search(path.name):
                return path
    folders = [Path(place) / "nvidia" for place in sys.path]
    found = [p for f in folders for sub in ("cu*/lib", "cuda_cupti/lib") for p in f.glob(f"{sub}/libcupti.so.*")]
    return next((p for p in sorted(found, reverse=True) if LIBRARY.search(p.name)), None)


def _current_context() -> ctypes.c_void_p:
    """The CUcontext of this thread, from the driver."""
    context = ctypes.c_void_p()
    if code := ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)):
        raise CounterError(f"the CUDA driver gives no context (cuCtxGetCurrent gave {code})")
    return context


class Host:
    """CUPTI's host side: turns metric names into a configuration for a chip, and counter data into numbers.

    It needs no GPU. The images are kept here because CUPTI reads them for as long as the profiler lives.
    """

    def __init__(self, library: Any, chip: bytes, availability: Any = None) -> None:
        self._library, self._availability = library, availability
        self._names = (ctypes.c_char_p * len(METRICS))(*METRICS)
        self._object = self._made(chip, availability)
        self.config = self._config()

    def _made(self, chip: bytes, availability: Any) -> Any:
        """The host object with the metrics added.

        CUPTI 13.2 may leave device-level counters out of the availability image; where the metrics are refused with
        the image, CUPTI is asked again without one: it knows the chip by its name.
        """
        fields: dict[str, Any] = {"profilerType": abi.RANGE_PROFILER, "pChipName": chip}
        image = None if availability is None else ctypes.addressof(availability)
        made = abi.call(self._library, abi.HostInitialize, **fields, pCounterAvailabilityImage=image).pHostObject
        names = {"ppMetricNames": self._names, "numMetrics": len(METRICS)}
        try:
            abi.call(self._library, abi.HostConfigAddMetrics, pHostObject=made, **names)
        except abi.CuptiError:
            abi.call(self._library, abi.HostDeinitialize, pHostObject=made)
            if availability is None:
                raise
            return self._made(chip, None)
        return made

    def _config(self) -> Any:
        size = abi.call(self._library, abi.HostGetConfigImageSize, pHostObject=self._object).configImageSize
        image = (ctypes.c_uint8 * size)()
        where = {"configImageSize": size, "pConfigImage": ctypes.addressof(image)}
        abi.call(self._library, abi.HostGetConfigImage, pHostObject=self._object, **where)
        return image

    def passes(self) -> int:
        """How many times the work would have to run; anything but 1 would mean replaying it."""
        where = {"configImageSize": len(self.config), "pConfigImage": ctypes.addressof(self.config)}
        return int(abi.call(self._library, abi.HostGetNumOfPasses, **where).numOfPasses)

    def evaluate(self, image: Any) -> list[float]:
        """The metrics of the first range of a counter data image, in bytes."""
        values = (ctypes.c_double * len(METRICS))()
        abi.call(
            self._library,
            abi.HostEvaluate,
            pHostObject=self._object,
            pCounterDataImage=ctypes.addressof(image),
            counterDataImageSize=len(image),
            rangeIndex=0,
            ppMetricNames=self._names,
            numMetrics=len(METRICS),
            pMetricValues=values,
        )
        return list(values)

    def close(self) -> None:
        """Give the host object back."""
        abi.call(self._library, abi.HostDeinitialize, pHostObject=self._object)


class RangeProfiler:
    """The range profiler enabled on one CUDA context; `synchronize` waits for the device."""

    def __init__(self, library: Any, context: Any, device: int, synchronize: Callable[[], Any]) -> None:
        self._library, self._context, self._synchronize = library, context, synchronize
        self._image: Any = None
        self._call(abi.Initialize)
        chip = self._call(abi.GetChipName, deviceIndex=device).pChipName
        self._host = Host(library, chip, self._availability(context))
        if (passes := self._host.passes()) != 1:
            raise CounterError(
                f"the metrics need {passes} passes on {chip.decode()}: the work would have to be replayed"
            )
        self._object = self._enabled()

    def _enabled(self) -> Any:
        return self._call(abi.Enable, ctx=self._context).pRangeProfilerObject

    def __enter__(self) -> RangeProfiler:
        return self

    def __exit__(self, *_: Any) -> None:
        with contextlib.suppress(CounterError):  # what went wrong before says more
            self._call(abi.Disable, pRangeProfilerObject=self._object)
            self._host.close()

    def _call(self, kind: type[abi.Params], **fields: Any) -> Any:
        return abi.call(self._library, kind, **fields)

    def _on(self, kind: type[abi.Params], **fields: Any) -> Any:
        return self._call(kind, pRangeProfilerObject=self._object, **fields)

    def _availability(self, context: Any) -> Any:
        """The image that says which counters this device has: asked for its size, then for itself."""
        kind = abi.GetCounterAvailability
        size = self._call(kind, ctx=context).counterAvailabilityImageSize
        image = (ctypes.c_uint8 * size)()
        where = {"counterAvailabilityImageSize": size, "pCounterAvailabilityImage": ctypes.addressof(image)}
        self._call(kind, ctx=context, **where)
        return image

    def _counter_data(self) -> Any:
        names = (ctypes.c_char_p * len(METRICS))(*METRICS)
        shape = {"maxNumOfRanges": 1, "maxNumRangeTreeNodes": 1}
        asked = self._on(abi.GetCounterDataSize, pMetricNames=names, numMetrics=len(METRICS), **shape)
        image = (ctypes.c_uint8 * asked.counterDataSize)()
        where = {"counterDataSize": len(image), "pCounterData": ctypes.addressof(image)}
        self._on(abi.CounterDataImageInitialize, **where)
        return image

    def _configure(self, image: Any) -> None:
        self._on(
            abi.SetConfig,
            configSize=len(self._host.config),
            pConfig=ctypes.addressof(self._host.config),
            counterDataImageSize=len(image),
            pCounterDataImage=ctypes.addressof(image),
            range=abi.USER_RANGE,
            replayMode=abi.USER_REPLAY,
            maxRangesPerPass=1,
            numNestingLevels=1,
            minNestingLevel=1,
            passIndex=0,
            targetNestingLevel=1,
        )

    def count(self, work: Callable[[], Any]) -> list[float]:
        """Run the work once in a range: bytes read and written. CounterError where a pass or a range got lost.

        NVIDIA's samples configure a profiler once; where it takes no second time, the work runs again under a new one.
        """
        if self._image is None:
            return self._counted(work)
        try:
            return self._counted(work)
        except CounterError:
            with contextlib.suppress(CounterError):
                self._on(abi.Disable)
            self._object = self._enabled()
            return self._counted(work)

    def _counted(self, work: Callable[[], Any]) -> list[float]:
        image = self._image = self._counter_data()  # CUPTI holds its pointer until it is given another
        self._configure(image)
        self._on(abi.Start)
        self._synchronize()
        self._on(abi.PushRange, pRangeName=b"work")
        work()
        self._synchronize()
        self._on(abi.PopRange)
        if not self._on(abi.Stop).isAllPassSubmitted:
            raise CounterError("CUPTI wants the work replayed, which would measure another state of the caches")
        if dropped := self._on(abi.DecodeData).numOfRangeDropped:
            raise CounterError(f"CUPTI dropped {dropped} ranges")
        where = {"pCounterDataImage": ctypes.addressof(image), "counterDataImageSize": len(image)}
        if (ranges := self._call(abi.GetCounterDataInfo, **where).numTotalRanges) != 1:
            raise CounterError(f"CUPTI recorded {ranges} ranges instead of 1")
        return self._host.evaluate(image)
