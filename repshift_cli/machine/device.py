"""Which device a run is on, or why it cannot be.

torch is imported inside functions: the help text of the tool does not need it.
"""

from __future__ import annotations

import gc
import importlib
import os
from typing import Any

from repshift_cli.records import UsageError, one_line


def choose_device(asked: str) -> str:
    """`cpu`, `cuda` or `cuda:N` for what was asked, `auto` being CUDA where there is any; UsageError otherwise."""
    if asked == "cpu":
        return asked
    if asked == "auto":
        return "cpu" if why_no_cuda() else "cuda"
    kind, colon, index = asked.partition(":")
    if kind != "cuda" or (colon and not index.isdecimal()):
        raise UsageError(f"unknown device {asked!r}: choose auto, cpu, cuda, or one GPU like cuda:1")
    if reason := why_no_cuda():
        raise UsageError(f"CUDA was asked for, but {reason}; --device cpu runs without")
    if colon and int(index) >= import_torch().cuda.device_count():
        last = import_torch().cuda.device_count() - 1
        raise UsageError(f"CUDA was asked for, but there is no {asked}: the last device here is cuda:{last}")
    return asked


def why_no_cuda() -> str | None:
    """Why torch cannot run on CUDA here, as half a sentence, or None where it can."""
    try:
        torch = import_torch()
    except Exception as error:
        return f"torch cannot be imported: {one_line(error)}"
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built without CUDA"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    try:
        torch.cuda.init()
    except Exception as error:
        return f"torch finds no usable GPU: {one_line(error)}"
    return "torch finds no usable GPU"


def import_torch() -> Any:
    """torch, imported when it is first needed."""
    return importlib.import_module("torch")


def free_memory() -> None:
    """Give back what nothing uses: garbage, cuBLAS' workspaces (one for every stream it ran on, 32 MiB each on
    Hopper), and the memory that torch caches."""
    gc.collect()
    torch = import_torch()
    if torch.cuda.is_available():
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()  # torch's own, and not promised to stay
        torch.cuda.empty_cache()


def index_of(device: str) -> int:
    return int(device.partition(":")[2] or 0)
