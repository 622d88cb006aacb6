"""The state of the CPU beside every timing: the share of the time in which a run really computed, and what kept it.

`CpuWatch` reads counters that only grow; what lies between two readings is a round. From readings (the first one before
the timed rounds, then one after each) to measurements and warnings it is pure, as `gpu_state` is.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from repshift_cli.machine.cores import ROOT, cgroup_folders, usable_cores
from repshift_cli.machine.nvml import quiet
from repshift_cli.records import Measurement, Metric

BUSY = 0.05
"""From this share of lost time on a warning is due: a forward takes up to as much longer than it should."""
GROSS = 0.15
"""From this share on no speed-up is shown.

Both come from a simulated scheduler (tests/test_cpu_state.py): with 5% lost, latencies are up to 5% too long and the
interval of a paired ratio still holds the truth in 95% of runs; with 15% it misses in one run of five, for a forward
of a few milliseconds loses other shares of its time than one of half the length."""


def _state(name: str, label: str, unit: str, better: str, description: str, statistic: str = "median") -> Metric:
    """What the kernel counts between readings: it explains figures and is none to be judged."""
    return Metric(name, label, unit, better, statistic, "driver", description, gateable=False, detail=True)


CPU_TIME = _state(
    "cpu_time", "CPU time", "%", "higher", "CPU time of the thread that calls the forward, of a round's wall time."
)
LOST = _state(
    "cpu_lost", "time lost", "%", "lower", "Share of a round in which the run had no core for a thread it waits for."
)
PROCESS = _state(
    "cpu_process",
    "CPU time of all threads",
    "%",
    "higher",
    "CPU time of all threads, of a round's wall time on the cores that they may use.",
)
WAITED = _state(
    "cpu_waited", "waited for a core", "%", "lower", "The longest that a thread of the run stood in a run queue."
)
STEAL = _state("cpu_steal", "steal", "%", "lower", "Share of all cores' time that the hypervisor gave to others.")
THROTTLED = _state(
    "cpu_throttled", "throttled by quota", "%", "lower", "Share of a round in which the container's quota held it back."
)
PRESSURE = _state(
    "cpu_pressure", "CPU pressure", "%", "lower", "Share of a round in which any task of the machine waited for a core."
)
RUNNABLE = _state("cpu_runnable", "run queue", "", "lower", "Tasks of the machine that run or want to, at a reading.")
THREADS = _state("cpu_threads", "threads", "", "lower", "Threads that torch computes with.", "value")
CORES = _state("cpu_cores", "usable cores", "", "higher", "Cores that this process may keep busy at once.", "value")


@dataclass(frozen=True)
class CpuReading:
    """Counters as they stand, in seconds; None where this system does not tell.

    `thread` is the CPU time of the calling thread, `process` that of all threads, `waits` by thread the time it waited
    on a run queue; `steal` is what a hypervisor took from all `online` cores together, `throttled` how long the
    container's quota held this process back, `pressure` how long any task of the machine waited for a core. `runnable`
    counts the machine's tasks that run or want to, now.
    """

    wall: float
    thread: float
    process: float
    waits: Mapping[int, float] | None = None
    steal: float | None = None
    throttled: float | None = None
    pressure: float | None = None
    runnable: int | None = None
    threads: int = 1
    cores: int = 1
    online: int = 1
    hardware_throttled: bool = field(default=False, init=False)


# --- reading ----------------------------------------------------------------------------------------------------------


class CpuWatch:
    """Reads the counters of this process and its machine; `root` is where /proc and /sys are."""

    def __init__(self, threads: int, root: Path = ROOT) -> None:
        self._threads, self._root = threads, root
        self._cores, self._online = usable_cores(root), os.cpu_count() or 1
        self._quotas = [f / "cpu.stat" for f in cgroup_folders(root) if (f / "cpu.stat").is_file()]
        self._tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

    def sample(self) -> CpuReading:
        """One reading, within a millisecond."""
        return CpuReading(
            time.perf_counter(),
            time.thread_time(),
            time.process_time(),
            quiet(self._waits),
            quiet(self._steal),
            quiet(self._throttled),
            quiet(self._pressure),
            quiet(self._runnable),
            self._threads,
            self._cores,
            self._online,
        )

    def _waits(self) -> dict[int, float]:
        """By thread: the second figure of its `schedstat`, nanoseconds on a run queue (kernel's sched-stats.rst)."""
        found = {}
        for folder in (self._root / "proc/self/task").iterdir():
            if (text := quiet((folder / "schedstat").read_text)) is not None:
                found[int(folder.name)] = int(text.split()[1]) / 1e9
        if not found:
            raise OSError("no thread has a schedstat")
        return found

    def _steal(self) -> float:
        """The eighth figure of /proc/stat's first line (proc_stat(5)), in clock ticks."""
        return int((self._root / "proc/stat").read_text().split(maxsplit=9)[8]) / self._tick

    def _throttled(self) -> float:
        """`throttled_usec` of cgroup v2, `throttled_time` in nanoseconds of v1; the most of the cgroups around."""
        found = [_throttled_seconds(path.read_text()) for path in self._quotas]
        return max(seconds for seconds in found if seconds is not None)

    def _pressure(self) -> float:
        """`some ... total=` of the kernel's pressure stall information, in microseconds."""
        return int((self._root / "proc/pressure/cpu").read_text().split("\n")[0].rpartition("total=")[2]) / 1e6

    def _runnable(self) -> int:
        """The fourth figure of /proc/loadavg is `RUNNABLE/ALL`."""
        return int((self._root / "proc/loadavg").read_text().split()[3].partition("/")[0])


def _throttled_seconds(text: str) -> float | None:
    told = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    if "throttled_usec" in told:
        return int(told["throttled_usec"]) / 1e6
    return int(told["throttled_time"]) / 1e9 if "throttled_time" in told else None


# --- what the readings tell -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shares:
    """One round in shares of its wall time."""

    cpu: float
    process: float
    waited: float | None
    steal: float | None
    throttled: float | None
    pressure: float | None

    @property
    def lost(self) -> float:
        """What was lost: the calling thread had no core, or another thread of this run, for which it waits (and may
        spin, which looks like work), had none. The larger of the two, for they may be the same moments."""
        return max(1 - self.cpu, self.waited or 0.0, 0.0)


def rounds_of(readings: Sequence[Any]) -> list[Shares]:
    """The shares between each reading of the CPU and the next; behind a None the run was waiting, which is no round."""
    pairs = pairwise(readings)
    told = [(a, b) for a, b in pairs if isinstance(a, CpuReading) and isinstance(b, CpuReading)]
    return [_between(a, b) for a, b in told if b.wall > a.wall]


def _between(before: CpuReading, after: CpuReading) -> Shares:
    wall = after.wall - before.wall

    def share(name: str, of: float = wall) -> float | None:
        a, b = getattr(before, name), getattr(after, name)
        return None if a is None or b is None else max(0.0, min(1.0, (b - a) / of))

    waits = None
    if before.waits is not None and after.waits is not None:
        waits = max((now - before.waits.get(thread, now) for thread, now in after.waits.items()), default=0.0)
    return Shares(
        share("thread") or 0.0,
        share("process", wall * min(after.threads, after.cores)) or 0.0,
        None if waits is None else max(0.0, min(1.0, waits / wall)),
        share("steal", wall * after.online),
        share("throttled"),
        share("pressure"),
    )


SHARES: tuple[tuple[Metric, Callable[[Shares], float | None]], ...] = (
    (CPU_TIME, lambda s: s.cpu),
    (LOST, lambda s: s.lost),
    (PROCESS, lambda s: s.process),
    (WAITED, lambda s: s.waited),
    (STEAL, lambda s: s.steal),
    (THROTTLED, lambda s: s.throttled),
    (PRESSURE, lambda s: s.pressure),
)
METRICS = (*(metric for metric, _ in SHARES), RUNNABLE, THREADS, CORES)


def measurements(readings: Sequence[Any]) -> Iterator[Measurement]:
    """What the readings tell, in percent, one sample for each round that told it."""
    rounds = rounds_of(readings)
    for metric, read in SHARES:
        values = [100 * share for r in rounds if (share := read(r)) is not None]
        if values:
            yield metric.of(*values)
    told = [r for r in readings if isinstance(r, CpuReading)]
    if runnable := [r.runnable for r in told if r.runnable is not None]:
        yield RUNNABLE.of(*runnable)
    if told:
        yield THREADS.of(told[-1].threads)
        yield CORES.of(told[-1].cores)


def warnings(readings: Sequence[Any]) -> Iterator[str]:
    """What a person should know of the machine while it was timed, the gravest first."""
    rounds = rounds_of(readings)
    if not rounds:
        return
    last = next(r for r in reversed(readings) if isinstance(r, CpuReading))
    lost = statistics.median(r.lost for r in rounds)
    if lost >= BUSY:
        causes = "; ".join(_causes(rounds, last))
        yield f"{_busy(rounds, lost)}{f' ({causes})' if causes else ''}; {_advice(lost, last)}"
    elif last.threads > last.cores:
        yield f"{_too_many(last)}: {_advice(lost, last)}"


def unfit(readings: Sequence[Any]) -> str | None:
    """Why no verdict may be drawn from times taken so, or None: the machine was busy beyond `GROSS`."""
    rounds = rounds_of(readings)
    lost = statistics.median(r.lost for r in rounds) if rounds else 0.0
    return _busy(rounds, lost) if lost >= GROSS else None


def _busy(rounds: Sequence[Shares], lost: float) -> str:
    cpu = statistics.median(r.cpu for r in rounds)
    if lost > 1 - cpu + 0.01:
        return f"the machine was busy: a thread of this run waited for a core {lost:.0%} of the wall time"
    return f"the machine was busy: {cpu:.0%} of the wall time was CPU time"


def _causes(rounds: Sequence[Shares], last: CpuReading) -> Iterator[str]:
    """What may have taken the rest, each as far as it was seen."""
    if last.threads > last.cores:
        yield _too_many(last)
    for name, words in (("throttled", "the container's CPU quota held it back"), ("steal", "the hypervisor stole")):
        shares = [share for r in rounds if (share := getattr(r, name)) is not None]
        if shares and statistics.median(shares) >= BUSY / 5:
            yield f"{words} {statistics.median(shares):.0%} of the time"
    if last.runnable is not None and last.runnable > last.online:
        yield f"{last.runnable} tasks wanted the machine's {_cores(last.online)}"


def _too_many(reading: CpuReading) -> str:
    given = os.environ.get("OMP_NUM_THREADS", "")
    named = f"OMP_NUM_THREADS={given}" if given == str(reading.threads) else f"{reading.threads} threads"
    return f"{named} on the {_cores(reading.cores)} that this process may use, so that threads spin for one another"


def _advice(lost: float, reading: CpuReading) -> str:
    if reading.threads > reading.cores:
        return f"measure again with --threads {reading.cores}"
    kept = "no speed-up is shown" if lost >= GROSS else "latencies are too long by as much"
    return f"{kept}; close other programs and measure again"


def _cores(count: int) -> str:
    return "1 core" if count == 1 else f"{count} cores"
