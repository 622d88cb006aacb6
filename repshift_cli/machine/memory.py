"""How much memory a device has in all, and how much of a computer's is free."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from repshift_cli.machine import device as devices
from repshift_cli.machine.cores import ROOT, cgroup_folders
from repshift_cli.machine.nvml import quiet


def total_bytes(device: str) -> int | None:
    """Bytes of the GPU, or of this computer for the CPU; None where nobody tells."""
    if device.startswith("cuda"):
        return int(devices.import_torch().cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def free_bytes(root: Path = ROOT) -> int | None:
    """Bytes of this computer's memory that a process may still take: what the kernel reckons as available, or what is
    left of the tightest cgroup's limit where that is less; None where nobody tells."""
    limits = [_left(folder) for folder in cgroup_folders(root)]
    known = [left for left in (_available(root), *limits) if left is not None]
    return min(known, default=None)


def _available(root: Path) -> int | None:
    lines = quiet(lambda: (root / "proc/meminfo").read_text().splitlines()) or []
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _left(folder: Path) -> int | None:
    """What a cgroup (v2) may still take; its page cache is given back where memory is short, and so counts as free."""

    def told() -> int:
        cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines()).get("file", "0")
        used = int((folder / "memory.current").read_text()) - int(cached)
        return int((folder / "memory.max").read_text()) - used

    return quiet(told)


def largest_child_bytes() -> int:
    """The most that any process which this one has started, or one of theirs, ever held: of those that have ended."""
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
