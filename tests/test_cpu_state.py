"""The state of the CPU beside timings: a fake /proc is read, shares, warnings, and where their limits lie."""

from __future__ import annotations

import importlib
import os
import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from repshift_cli import cli
from repshift_cli.analysis import stats
from repshift_cli.machine import cores, cpu_state
from repshift_cli.machine.cpu_state import BUSY, GROSS, CpuReading, CpuWatch
from repshift_cli.records import store

# --- reading ----------------------------------------------------------------------------------------------------------


def fake_root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


SOME = "some avg10=1.00 avg60=0.50 avg300=0.10 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"


def test_every_counter_is_read_in_seconds(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    root = fake_root(
        tmp_path,
        {
            "proc/self/task/11/schedstat": "5000000000 3000000000 70\n",
            "proc/self/task/12/schedstat": "1000000000 500000000 9\n",
            "proc/stat": f"cpu  1 2 3 4 5 6 7 {4 * tick} 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n",
            "proc/pressure/cpu": SOME,
            "proc/loadavg": "6.86 6.93 5.08 8/179 23442\n",
            "proc/self/cgroup": "0::/box\n",
            "sys/fs/cgroup/box/cpu.stat": "usage_usec 9\nnr_throttled 3\nthrottled_usec 1500000\n",
            "sys/fs/cgroup/box/cpu.max": "50000 100000\n",
        },
    )
    seen = CpuWatch(2, root).sample()
    assert seen.waits == {11: 3.0, 12: 0.5}
    assert (seen.steal, seen.pressure, seen.throttled, seen.runnable) == (4.0, 2.5, 1.5, 8)
    assert (seen.threads, seen.cores) == (2, 1)


def test_what_a_system_does_not_tell_is_none(tmp_path: Path) -> None:
    seen = CpuWatch(1, tmp_path).sample()
    assert (seen.waits, seen.steal, seen.pressure, seen.throttled, seen.runnable) == (None,) * 5
    assert seen.wall > 0 and seen.process > 0


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/elsewhere\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    root = fake_root(tmp_path, files)
    assert cores.cpu_quota(root) == quota
    allowed = len(os.sched_getaffinity(0))
    assert cores.usable_cores(root) == (allowed if quota is None else min(allowed, int(-(-quota // 1))))


# --- shares and words -------------------------------------------------------------------------------------------------

START = CpuReading(10.0, 1.0, 1.0, {1: 0.0}, 0.0, 0.0, 0.0, 1, online=2)


def readings(rounds: int = 8, **each: float) -> list[CpuReading]:
    """Rounds of one second in which the counters grow by these amounts; the thread computes all the time by default."""
    grown = {"thread": 1.0, "process": 1.0, "waited": 0.0, "steal": 0.0, "throttled": 0.0} | each
    found = [START]
    for n in range(1, rounds + 1):
        counters = {name: getattr(START, name, 0.0) + n * by for name, by in grown.items() if name != "waited"}
        found.append(replace(START, wall=10.0 + n, waits={1: n * grown["waited"]}, **counters))
    return found


def words(seen: list[CpuReading]) -> str:
    return "\n".join(cpu_state.warnings(seen))


def figure(seen: list[CpuReading], name: str) -> float | None:
    found = [m for m in cpu_state.measurements(seen) if m.metric == name]
    return statistics.median(found[0].samples) if found else None


def test_a_run_that_computes_all_the_time_gives_no_warning() -> None:
    assert words(readings()) == "" and words(readings(thread=0.97, waited=0.02)) == ""
    assert figure(readings(), "cpu_lost") == 0 and figure(readings(), "cpu_time") == 100


def test_a_busy_machine_is_told_with_the_share_of_the_time() -> None:
    seen = readings(thread=0.43, process=0.43, waited=0.5)
    said = words(seen)
    assert said.startswith("the machine was busy: 43% of the wall time was CPU time")
    assert "no speed-up is shown; close other programs" in said
    assert figure(seen, "cpu_lost") == pytest.approx(57)
    assert "latencies are too long by as much" in words(readings(thread=0.9))


def test_threads_that_spin_for_one_that_waits_are_no_work() -> None:
    seen = [replace(r, threads=2, cores=2) for r in readings(thread=1.0, process=1.5, waited=0.5)]
    assert words(seen).startswith("the machine was busy: a thread of this run waited for a core 50% of the wall time")


def test_too_many_threads_are_named_as_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [replace(r, threads=4, cores=2) for r in readings(thread=0.5)]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert "(4 threads on the 2 cores that this process may use" in words(seen)
    assert words(seen).endswith("measure again with --threads 2")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert "(OMP_NUM_THREADS=4 on the 2 cores" in words(seen)
    calm = [replace(r, threads=4, cores=2) for r in readings()]
    assert words(calm).startswith("OMP_NUM_THREADS=4 on the 2 cores")


def test_steal_and_quota_and_other_tasks_are_named() -> None:
    said = words([replace(r, runnable=7) for r in readings(thread=0.6, steal=0.4, throttled=0.3)])
    assert "the hypervisor stole 20% of the time" in said
    assert "the container's CPU quota held it back 30% of the time" in said
    assert "7 tasks wanted the machine's 2 cores" in said


def test_one_bad_round_is_no_busy_machine() -> None:
    seen = readings(9)
    late = [replace(r, wall=r.wall + 5) if i > 4 else r for i, r in enumerate(seen)]
    assert words(late) == ""


def test_the_time_before_a_turn_is_no_round() -> None:
    """A second of work, a minute of waiting for the other processes, a second of work."""
    before, after = readings(1), [replace(r, wall=r.wall + 60) for r in readings(2)[1:]]
    assert [round(r.lost, 2) for r in cpu_state.rounds_of([*before, *after])] == [0.0, 1.0, 0.0]
    assert [r.lost for r in cpu_state.rounds_of([*before, None, *after])] == [0.0, 0.0]


def test_readings_of_a_gpu_are_none_of_a_cpu() -> None:
    assert list(cpu_state.measurements([None, object()])) == [] and words([]) == ""


# --- where the limits lie ---------------------------------------------------------------------------------------------

OTHERS_SLICE = 3.0
"""Milliseconds that another program keeps a core, on average: the base slice of the kernel's scheduler (EEVDF)."""


class Core:
    """A core that another program takes a share `lost` of, in slices of exponential length."""

    def __init__(self, rng: random.Random, lost: float) -> None:
        self.rng, self.own = rng, OTHERS_SLICE * (1 - lost) / lost
        self.left = rng.expovariate(1 / self.own)

    def forward(self, work: float) -> float:
        """Milliseconds that `work` milliseconds of computing take."""
        took = work
        while work > self.left:
            work -= self.left
            took += self.rng.expovariate(1 / OTHERS_SLICE)
            self.left = self.rng.expovariate(1 / self.own)
        self.left -= work
        return took


def simulated(seed: int, lost: float, slow: float, fast: float) -> tuple[stats.Estimate, float]:
    """The paired speed-up of two forwards (ms) from 12 rounds, and how much too long the slow one's latency is."""
    rng = random.Random(seed)
    core, medians = Core(rng, lost), ([], [])  # type: tuple[list[float], list[float]]
    for _ in range(12):
        for own, work in zip(medians, (slow, fast), strict=True):
            count = min(20, -(-20 // int(work)))
            own.append(statistics.median(core.forward(work * rng.gauss(1, 0.004)) for _ in range(count)))
    return stats.hodges_lehmann(stats.paired_ratios(*medians)), statistics.median(medians[0]) / slow - 1


def share_missed(lost: float, slow: float = 6.0, fast: float = 4.0, runs: int = 200) -> float:
    """In which share of runs the interval does not hold the true ratio."""
    figures = [simulated(seed, lost, slow, fast)[0] for seed in range(runs)]
    return sum(not (f.low or 0) <= slow / fast <= (f.high or 0) for f in figures) / runs


def test_below_the_warning_an_interval_holds_what_it_promises_and_from_the_refusal_on_it_does_not() -> None:
    assert share_missed(BUSY) <= 0.08
    assert share_missed(GROSS) >= 0.12


def test_at_the_warning_a_latency_is_too_long_by_about_that_share() -> None:
    late = statistics.median(simulated(seed, BUSY, 200.0, 150.0)[1] for seed in range(60))
    assert late == pytest.approx(BUSY, abs=0.02)


# --- beside real programs ---------------------------------------------------------------------------------------------

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="counts on Linux's scheduler to share the cores")


@pytest.fixture
def imported() -> None:
    """What the model needs: beside the spinners it would take a quarter of a minute."""
    importlib.import_module("transformers.models.vit.modeling_vit")


@pytest.mark.slow
@LINUX
def test_programs_beside_a_run_are_told_first_and_too_many_threads_are_named(
    imported: None, spinners: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    count = cores.usable_cores() + 1
    before = torch.get_num_threads()
    options = ["--variant", "flash", "--timing-only", "--rounds", "3", "--threads", str(count)]
    code = cli.run(["bench", "--model", "vit_t", "--image-size", "32", *options, "--out", "run.json"], debug=False)
    torch.set_num_threads(before)
    run = store.load(Path("run.json"))
    assert (code, run.machine.threads, run.options["threads"]) == (0, count, count)
    for record in run.records:
        first = record.warnings[0]
        assert first.startswith("the machine was busy: ") and f"{count} threads on the " in first
        lost = record.measurement("cpu_lost")
        assert lost is not None and len(lost.samples) == 3 and statistics.median(lost.samples) > 100 * BUSY
