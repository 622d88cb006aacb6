"""Fakes of torch's devices and of NVML: two GPUs and two that NVML knows as MIG or not at all."""

from types import ModuleType, SimpleNamespace
from typing import Any

UUIDS = ("1111-aa", "2222-bb", "3333-cc", "4444-dd")


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
