"""The CPU cores that this process may use, by affinity and container's quota, and the threads to compute with."""

from __future__ import annotations

import math
import os
from pathlib import Path

from repshift_cli.machine import device as devices
from repshift_cli.machine.nvml import quiet

ROOT = Path("/")


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process can keep busy at once: its affinity, or the quota of its cgroup where that is less."""
    allowed = quiet(lambda: len(os.sched_getaffinity(0))) or os.cpu_count() or 1
    quota = cpu_quota(root)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def choose_threads(asked: int | None) -> int:
    """The threads that torch computes with: those asked for, by option or OMP_NUM_THREADS, else one per core.

    torch counts the machine's cores; a container may leave it fewer, and more threads than those would spin.
    """
    own = int(devices.import_torch().get_num_threads())
    if asked is not None or "OMP_NUM_THREADS" in os.environ:
        return asked or own
    return min(own, usable_cores())


def set_threads(count: int) -> None:
    """Have torch compute with this many threads from now on."""
    devices.import_torch().set_num_threads(count)


def cpu_quota(root: Path = ROOT) -> float | None:
    """The cores' worth of CPU time that the cgroups of this process allow, the tightest of them, or None."""
    quotas = [_quota_v2(folder) for folder in cgroup_folders(root)] + [_quota_v1(f) for f in cgroup_folders(root)]
    return min((q for q in quotas if q is not None), default=None)


def cgroup_folders(root: Path = ROOT) -> list[Path]:
    """The folders of this process's CPU cgroups, v2 and v1, each with those above it; in a container they are mounted
    at their own top, whatever path the kernel names."""
    text = quiet(lambda: (root / "proc/self/cgroup").read_text(encoding="utf-8")) or ""
    mounts = root / "sys/fs/cgroup"
    found = dict.fromkeys((mounts, mounts / "cpu", mounts / "cpu,cpuacct"))
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounts / controllers if controllers else mounts
        inside = top / path.strip("/")
        found |= dict.fromkeys(f for f in (inside, *inside.parents) if f.is_relative_to(top))
    return [folder for folder in found if quiet(folder.is_dir)]


def _quota_v2(folder: Path) -> float | None:
    """`cpu.max` holds "QUOTA PERIOD" in microseconds, or "max PERIOD"."""
    words = (quiet(lambda: (folder / "cpu.max").read_text(encoding="utf-8")) or "").split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0] != "max" else None


def _quota_v1(folder: Path) -> float | None:
    """`cpu.cfs_quota_us` is -1 where there is none."""
    quota, period = (_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota / period if quota and period and quota > 0 else None


def _number(path: Path) -> int | None:
    return quiet(lambda: int(path.read_text(encoding="utf-8")))
