"""How much memory a device has in all."""

from __future__ import annotations

import os

from repshift_cli.machine import device as devices


def total_bytes(device: str) -> int | None:
    """Bytes of the GPU, or of this computer for the CPU; None where nobody tells."""
    if device.startswith("cuda"):
        return int(devices.import_torch().cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
