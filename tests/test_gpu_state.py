"""The state of the machine beside a timing, memory and energy, all from fakes at NVML's and torch's edge."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from fake_machine import FakeNvml

from repshift_cli.cli import run
from repshift_cli.machine import gpu_state, nvml
from repshift_cli.machine.describe import describe
from repshift_cli.machine.nvml import Reading, Watch
from repshift_cli.probes import snapshot
from repshift_cli.probes.energy import EnergyProbe
from repshift_cli.probes.memory import METRICS, MemoryProbe
from repshift_cli.probes.snapshot import recorded
from repshift_cli.records import Step


def process(pid: int, memory: int | None = 3 * 2**30) -> Any:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory)


# --- who else is on the card ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holders", "refuse", "others"),
    [
        ((process(os.getpid()),), (), ()),
        ((), (), ()),
        ((process(os.getpid()), process(1)), (), ("python3 (pid 1, 3.0 GiB)",)),
        ((process(os.getpid()), process(1, None)), (), ("python3 (pid 1)",)),
        ((process(os.getpid()), process(1)), ("name",), ("a process (pid 1, 3.0 GiB)",)),
        ((process(os.getpid()), process(1)), ("processes",), ()),
        ((process(-7),), (), ()),
        ((process(-7), process(-8)), (), ("1 more in other PID namespaces, which NVML cannot name here",)),
    ],
)
def test_others_on_the_card_are_named(two_gpus: pytest.MonkeyPatch, holders: Any, refuse: Any, others: Any) -> None:
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(refuse=refuse, holders=holders))
    reading = Watch("cuda").sample()
    assert reading is not None and reading.others == others


def test_a_process_without_its_memory_is_not_taken_for_a_namespace(two_gpus: pytest.MonkeyPatch) -> None:
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(holders=(process(os.getpid(), None),)))
    assert nvml.process_bytes("cuda") == "NVML lists this process without its memory"
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(holders=(process(-7),)))
    assert nvml.process_bytes("cuda") == "NVML does not list this process (another PID namespace)"
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(holders=(process(os.getpid(), 5),)))
    assert nvml.process_bytes("cuda") == 5


@pytest.mark.parametrize(
    ("read", "value", "refuse", "reason"),
    [
        (nvml.card_bytes, 7 * 2**30, "memory", "NVML does not tell the card's memory: Not Supported"),
        (nvml.millijoules, 1000, "energy", "NVML does not tell energy: Not Supported"),
    ],
)
def test_what_nvml_does_not_tell_is_a_reason(
    two_gpus: pytest.MonkeyPatch, read: Any, value: int, refuse: str, reason: str
) -> None:
    assert read("cuda") == value
    assert read("cpu") == "no GPU in this run"
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(refuse=(refuse,)))
    assert read("cuda") == reason
    two_gpus.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py, which is not installed" in read("cuda")
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml())
    assert "NVML does not know the device GPU-4444-dd" in read("cuda:3")


def test_the_peak_bandwidth_is_the_bus_times_the_clock(two_gpus: pytest.MonkeyPatch) -> None:
    """H100 SXM: 5120 bit and 2619 MHz make 3.35 TB/s, as its data sheet has it."""
    peak = nvml.peak_bandwidth("cuda")
    assert isinstance(peak, nvml.Peak) and round(peak.bytes_per_second / 1e9) == 3352
    assert describe("cuda").peak_bandwidth == "3352 GB/s (NVML: 5120 bit x 2 x 2619 MHz)"


# --- readings in words ------------------------------------------------------------------------------------------------


def reading(**changes: Any) -> Reading:
    return Reading(**{"sm_clock": 1980, "memory_clock": 2619, "temperature": 50, "power": 400.0, **changes})


def test_a_quiet_machine_gives_figures_and_no_warning() -> None:
    readings = [reading(power=100.0), reading(), reading(sm_clock=1970), None]
    found = {m.metric: m.samples for m in gpu_state.measurements(readings)}
    assert found["sm_clock"] == (1980, 1980, 1970)
    assert found["power"] == (100, 400, 400)
    assert found["clocks_event_reasons"] == (0, 0, 0)
    assert list(gpu_state.warnings(readings)) == []


def test_what_is_not_told_is_no_sample() -> None:
    assert [m.metric for m in gpu_state.measurements([reading(power=None, sm_clock=None)])] == [
        "memory_clock",
        "temperature",
        "clocks_event_reasons",
    ]
    assert list(gpu_state.measurements([None])) == [] and list(gpu_state.warnings([None])) == []


CAP = {"throttle": ("software power cap",), "events": 4}


@pytest.mark.parametrize(
    ("readings", "words"),
    [
        ([reading(**CAP), reading(**CAP, sm_clock=1900), reading()],
         ["the power limit held the clocks down (software power cap in 1 of 2 readings, SM clock 1940 MHz)"]),
        ([reading(), reading(throttle=("software thermal slowdown",), sm_clock=None)],
         ["the GPU was too warm for its full clocks; cool it and measure again (software thermal slowdown in 1 of 1 "
          "readings)"]),
        ([reading(), reading(throttle=("hardware slowdown",), hardware_throttled=True)],
         ["the device was throttled by hardware in rounds that count; cool it and measure again"]),
        ([reading(hardware_throttled=True), reading()], []),
        ([reading(sm_clock=300), reading(), reading(sm_clock=1890)], []),
        ([reading(), reading(), reading(sm_clock=1500)],
         ["the SM clock moved between 1500 and 1980 MHz: ratios within a round hold, latencies vary "
          "(`nvidia-smi --lock-gpu-clocks` holds it still)"]),
        ([reading(others=("python3 (pid 1)",)), reading(others=("python3 (pid 1)", "b (pid 2)"))],
         ["not alone on the GPU while it was timed: python3 (pid 1), b (pid 2); stop them and measure again"]),
    ],
)  # fmt: skip
def test_readings_become_words(readings: list[Any], words: list[str]) -> None:
    assert list(gpu_state.warnings(readings)) == words


# --- energy -----------------------------------------------------------------------------------------------------------


class Card:
    """A clock and an energy counter that move by the forwards run: 0.5 s and 150 J each."""

    def __init__(self, energy: Any = None) -> None:
        self.time, self.runs, self.energy = 0.0, 0, energy

    def forward(self) -> None:
        self.spend(0.5)

    def spend(self, seconds: float) -> None:
        self.time, self.runs = self.time + seconds, self.runs + 1

    def millijoules(self) -> Any:
        return 150_000 * self.runs if self.energy is None else self.energy

    def measured(self) -> dict[str, Any]:
        subject: Any = SimpleNamespace(units="img")
        step = Step(tiny.case(batch=8), subject, nullcontext, self.forward, lambda given: None)
        found = EnergyProbe(self.millijoules, lambda: None, lambda: self.time).measure(step)
        return {m.metric: m for m in found}


def test_energy_is_a_loop_of_seconds_with_its_uncertainty() -> None:
    card = Card()
    found = card.measured()
    assert found["energy"].samples == (150.0,)
    assert found["energy_uncertainty"].samples == (150.0 * 0.1 / 4,), "a tenth of a second of four"
    assert found["samples_per_joule"].samples == (8 / 150,) and found["samples_per_joule"].label == "img/J"
    assert card.runs == 10, "two go before the counter is read"


def test_short_forwards_are_not_waited_for_one_by_one() -> None:
    """25 forwards of 1/256 s fill a tenth of a second: the host waits 41 times in the loop, not 1025."""
    card, waits = Card(), []
    step = Step(tiny.case(), SimpleNamespace(units="img"), nullcontext, lambda: card.spend(1 / 256), lambda given: None)  # type: ignore[arg-type]
    EnergyProbe(card.millijoules, lambda: waits.append(card.time), lambda: card.time).measure(step)
    assert card.runs == 2 + 1025 and len(waits) == 2 + 41


@pytest.mark.parametrize(
    ("energy", "reason"),
    [
        ("NVML does not tell energy: Not Supported", "NVML does not tell energy: Not Supported"),
        (77, "the energy counter did not move while the forward ran"),
    ],
)
def test_energy_that_is_not_told_is_missing(energy: Any, reason: str) -> None:
    card = Card(energy)
    assert {m.reason for m in card.measured().values()} == {reason}
    assert card.runs == (0 if isinstance(energy, str) else 10), "no forward where nothing is told"


# --- memory -----------------------------------------------------------------------------------------------------------


def tiny_step() -> Step:
    from repshift_cli.benchmark import builder

    plain = tiny.vit()
    return builder.eager_step(tiny.case(attention="flash"), tiny.subject(plain.module, plain.inputs))


def test_each_kind_of_memory_has_its_name_or_its_reason() -> None:
    found = {m.metric: m for m in MemoryProbe(lambda: 5, lambda: "no GPU in this run").measure(tiny_step())}
    assert set(found) == {m.name for m in METRICS}
    peak, above, resting = (
        found[f"memory_{n}"].samples[0] for n in ("peak_allocated", "peak_above_resting", "resting")
    )
    assert peak == above + resting and above > 0
    assert found["memory_process"].samples == (5,)
    assert found["memory_card"].reason == "no GPU in this run"
    assert found["memory_peak_reserved"].reason == "a CPU has no caching allocator"


def test_a_snapshot_goes_to_the_file_of_its_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[Any] = []
    monkeypatch.setattr(snapshot, "record_memory", lambda step, target: written.append((step, target)))
    made = tiny_step()
    assert recorded(lambda c: tmp_path / f"{c.attention}.pickle", made) == ()
    assert written == [(made, tmp_path / "flash.pickle")]


def test_snapshots_of_several_cases_are_several_files(two_gpus: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from repshift_cli.benchmark.engine import snapshot_files

    file = tmp_path / "memory.pickle"
    cases = [tiny.case(), tiny.case(attention="flash", pruning="random", keep=0.5, layers=(1,)), tiny.case(batch=9)]
    planned: Any = [SimpleNamespace(case=c, refused=None) for c in cases[:2]]
    planned.append(SimpleNamespace(case=cases[2], refused="impossible"))
    where = snapshot_files(file, planned)
    assert [where[c].name for c in cases[:2]] == ["memory-1-vanilla.pickle", "memory-2-flash+random.pickle"]
    assert snapshot_files(file, planned[:1]) == {cases[0]: file}


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--hbm", "cupty"], "hbm: unknown value 'cupty'; did you mean cupti? choose from auto, cupti, ncu, gpm"),
        (["--hbm", "ncu"], "error: --hbm ncu counts on a GPU, and this run is on the CPU; use --hbm auto or model"),
        (["--memory-snapshot", "x.pickle"], "error: --memory-snapshot needs a GPU: torch keeps a history of CUDA"),
        (["--device", "cuda:9"], "error: CUDA was asked for, but this torch"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_gpu: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["bench", "--model", "deit_t", *options], False) == 2
    told = capsys.readouterr().err
    assert words in told and told.count("\n") == 1
    assert list(tmp_path.rglob("*.json")) == []
