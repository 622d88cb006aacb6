"""Whether this process may read the GPU's performance counters."""

from __future__ import annotations

import os
from pathlib import Path

NVIDIA_PARAMETERS = Path("/proc/driver/nvidia/params")
CAP_SYS_ADMIN = 21
REMEDY = "run as root or with CAP_SYS_ADMIN, or set the driver option NVreg_RestrictProfilingToAdminUsers=0"


def permission() -> tuple[bool | None, str]:
    """Whether the counters may be read (None where it cannot be told), and why."""
    try:
        text = NVIDIA_PARAMETERS.read_text(encoding="utf-8")
    except OSError:
        return None, f"cannot be told: no {NVIDIA_PARAMETERS}"
    values = dict(line.partition(":")[::2] for line in text.splitlines())
    restricted = values.get("RmProfilingAdminOnly", "").strip()
    if restricted == "0":
        return True, "open to every user (RmProfilingAdminOnly: 0)"
    if is_admin():
        return True, "restricted to administrators, and this process is one"
    return False, f"restricted to administrators (RmProfilingAdminOnly: {restricted or 'unknown'})"


def why_not_allowed() -> str | None:
    """Why the counters are closed to this process, with the remedy, or None where they are open or may be."""
    allowed, words = permission()
    return f"the counters are {words}; {REMEDY}" if allowed is False else None


def is_admin() -> bool:
    """Whether this process is allowed what CAP_SYS_ADMIN allows; root in a container often is not."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
        return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)
    except (OSError, StopIteration):
        return hasattr(os, "geteuid") and os.geteuid() == 0
