"""Fakes of torch's devices and of NVML: two GPUs and two that NVML knows as MIG or not at all."""

from types import ModuleType, SimpleNamespace
from typing import Any

UUIDS = ("1111-aa", "2222-bb", "3333-cc", "4444-dd")


class FakeNvml(ModuleType):
    """Just enough of pynvml: two GPUs, in the reverse of torch's order."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_GPM_METRICS_GET_VERSION, NVML_GPM_METRIC_DRAM_BW_UTIL = 1, 10

    def __init__(
        self, events: int = 0, refuse: tuple[str, ...] = (), holders: tuple[Any, ...] = (), **told: Any
    ) -> None:
        super().__init__("pynvml")
        self.events, self.refuse, self.holders = events, refuse, holders
        self.told = {"bus": 5120, "gpm": 1, "mig": 0, "utilisation": 50.0, "gpm_return": 0, "energy": 1000} | told
        self.samples: list[str] = []

    def _answer(self, name: str, value: Any) -> Any:
        if name in self.refuse:
            raise RuntimeError("Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._answer("init", None)

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-1111-aa", "GPU-2222-bb", "MIG-3333-cc"):
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

    def nvmlDeviceGetMemoryBusWidth(self, handle: str) -> int:
        return self._answer("bus", self.told["bus"])

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return self._answer("memory", SimpleNamespace(used=7 * 2**30))

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._answer("energy", self.told["energy"])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return self._answer("processes", list(self.holders))

    def nvmlSystemGetProcessName(self, pid: int) -> bytes:
        return self._answer("name", b"/usr/bin/python3")

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> int:
        return self._answer("mig", self.told["mig"])

    def nvmlGpmQueryDeviceSupport(self, handle: str) -> Any:
        return self._answer("gpm", SimpleNamespace(isSupportedDevice=self.told["gpm"]))

    def nvmlGpmSampleAlloc(self) -> str:
        self.samples.append("alloc")
        return f"sample {len(self.samples)}"

    def nvmlGpmSampleGet(self, handle: str, sample: str) -> None:
        self.samples.append("get")
        self._answer("sample", None)

    def nvmlGpmSampleFree(self, sample: str) -> None:
        self.samples.append("free")

    def c_nvmlGpmMetricsGet_t(self) -> Any:
        return SimpleNamespace(metrics=[SimpleNamespace(nvmlReturn=-1, value=-1.0, metricId=None)])

    def nvmlGpmMetricsGet(self, asked: Any) -> Any:
        assert (asked.version, asked.numMetrics, asked.metrics[0].metricId) == (1, 1, 10)
        assert (asked.sample1, asked.sample2) == ("sample 1", "sample 2")
        asked.metrics[0].value, asked.metrics[0].nvmlReturn = self.told["utilisation"], self.told["gpm_return"]
        return asked

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
