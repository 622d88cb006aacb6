"""How a process ended, in words, and whether the kernel ended it for memory."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

GIB = 2**30
NEAR = 0.5
"""A process that held more than this share of the memory there is, and was killed, was most likely killed for it."""

WORDS = {
    "SIGSEGV": "segmentation fault",
    "SIGABRT": "abort",
    "SIGBUS": "bus error",
    "SIGILL": "illegal instruction",
    "SIGFPE": "arithmetic error",
    "SIGKILL": "killed from outside",
    "SIGTERM": "asked to end",
}


def reason(code: int, peak: int, killed_for_memory: bool) -> str:
    """Why a process is gone: `code` as subprocess gives it, `peak` the most bytes that it held."""
    if code >= 0:
        how = "; the model ended it" if code in (0, 1) else ""
        return f"the process ended with exit code {code}{how}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"the process died of signal {-code}"
    limit = memory_limit()
    if name == "SIGKILL" and (killed_for_memory or (limit and peak > NEAR * limit)):
        of = f" of {limit / GIB:.1f}" if limit else ""
        return f"the process was killed, most likely for memory: {peak / GIB:.1f}{of} GiB in use; try a smaller batch"
    return f"the process died of signal {-code} ({WORDS.get(name, name)})"


def memory_limit() -> int | None:
    """The bytes that a process may have here: the least of the machine's and the control group's."""
    limits = []
    with contextlib.suppress(OSError, ValueError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limits.append(int((_CGROUP / name).read_text()))
    return min(limits, default=None)


def kills_for_memory() -> int:
    """How many processes the kernel has killed for memory, in this control group and on the machine."""
    return sum(_counted(file) for file in (_CGROUP / "memory.events", Path("/proc/vmstat")))


_CGROUP = Path("/sys/fs/cgroup")


def _counted(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in file.read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
