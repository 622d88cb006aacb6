"""Which path the kernels take, Triton or plain torch: decided in one place, forced by name, noted for the record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from repshift_cli.records import UsageError, one_line

PARTS = ("score", "select", "cut")
PATHS = ("triton", "torch")

TRITON = find_spec("triton") is not None
CAPABILITY = (8, 0)
"""The oldest NVIDIA architecture that Triton supports."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32)

_forced: dict[str, str] = {}
_seen: set[str] = set()
_decided: dict[tuple[Any, ...], str] = {}
"""The path by part, limit, devices and dtypes, for as long as what is forced stays as it is."""


def path_for(part: str, *tensors: Tensor, limit: str | None = None) -> str:
    """`triton` or `torch` for these inputs of one of PARTS; `limit` says why the caller's kernel cannot take them.

    Triton where it is installed and the tensors are fp16, bf16 or fp32 on the current CUDA device; plain torch
    elsewhere, and while torch.compile follows, which fuses plain torch itself. `using` overrules it, and UsageError
    says why what it asks for cannot run.
    """
    forced = _forced.get(part)
    if torch.compiler.is_compiling():
        return forced or "torch"
    first = tensors[0]
    current = torch.cuda.current_device() if first.is_cuda else None
    key = (part, limit, current, *[(t.device, t.dtype) for t in tensors])
    path = _decided.get(key)
    if path is None:
        path = _decided[key] = _decide(part, forced, tensors, limit)
    _seen.add(f"{part}:{path}")
    return path


def _decide(part: str, forced: str | None, tensors: tuple[Tensor, ...], limit: str | None) -> str:
    """The path that is taken from now on by whatever looks the same."""
    if forced == "torch":
        return forced
    why_not = limit or _why_not(tensors, interpreted=forced == "triton")
    if forced and why_not:
        raise UsageError(f"the Triton {part} kernel cannot run here: {why_not}; choose the path torch")
    return "torch" if why_not else "triton"


def _why_not(tensors: tuple[Tensor, ...], interpreted: bool) -> str | None:
    """Why Triton cannot take the tensors, or None; CPU tensors it takes only where its interpreter was asked for."""
    first = tensors[0]
    if not (first.is_cuda or (interpreted and first.is_cpu)):
        return f"the tensors are on {first.device.type}"
    if first.is_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        return "on a CPU it needs TRITON_INTERPRET=1"
    if any(t.device != first.device for t in tensors):
        return "the tensors are on several devices"
    if any(t.dtype not in DTYPES for t in tensors):
        return f"it takes fp16, bf16 and fp32, not {first.dtype}"
    if not TRITON:
        return "the package triton is not installed"
    if first.is_cuda and first.device.index != torch.cuda.current_device():
        return f"{first.device} is not the current device"
    if first.is_cuda and torch.cuda.get_device_capability(first.device) < CAPABILITY:
        return "Triton needs compute capability 8.0"
    return _cannot_start() if first.is_cuda else None


@cache
def _cannot_start() -> str | None:
    """Why Triton launches nothing here, or None: a C compiler builds what it loads kernels by, with Python's headers.

    Images to run models in have none of these.
    """
    try:
        from triton.runtime.driver import driver

        assert driver.active.utils
    except Exception as error:
        return f"Triton does not start (it needs gcc and Python's headers): {one_line(error)}"
    return None


@contextmanager
def using(path: str, *parts: str) -> Iterator[None]:
    """Within it these parts (without any: all of PARTS) take this path; the others stay as they were.

    `triton` on CPU tensors runs Triton's interpreter, for which TRITON_INTERPRET=1 must be set before triton is
    imported; it is for tests, being thousands of times slower.
    """
    if path not in PATHS or not set(parts) <= set(PARTS):
        raise UsageError(f"unknown kernel path {path!r} for {parts}: choose {', '.join(PATHS)} for {', '.join(PARTS)}")
    before = dict(_forced)
    _forced.update(dict.fromkeys(parts or PARTS, path))
    _decided.clear()
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
        _decided.clear()


@contextmanager
def seen() -> Iterator[list[str]]:
    """On leaving, the list holds what ran within it, like `score:triton`; the replay of a CUDA graph adds nothing."""
    ran: list[str] = []
    before = set(_seen)
    _seen.clear()
    try:
        yield ran
    finally:
        ran += sorted(_seen)
        _seen.update(before)
