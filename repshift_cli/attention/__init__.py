"""One file per attention back end, and what a back end is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from repshift_cli.records import Offers


class Backend(Protocol):
    """An attention back end: a file of this room, or of another package by the group `repshift.attention`."""

    OFFERS: Offers
    """What it accepts; what it does not is refused before anything is measured."""

    OPS: tuple[str, ...]
    """Operators of torch of which one is seen in every call; empty where a package's own function runs."""

    KERNELS: str
    """A pattern that the name of a device kernel matches on CUDA; empty where there is none to tell it by."""

    attend: Callable[..., Tensor] | None
    """What stands in for torch's scaled_dot_product_attention, with its signature: (B, H, N, d) -> (B, H, N, d). None
    where torch's own is called, and `session` says which kernel it uses."""

    session: Callable[[], AbstractContextManager[object]]
    """Makes a context around every forward; `contextlib.nullcontext` where none is needed."""

    def unavailable(self, device: str) -> str | None:
        """Why it cannot run on this device, and how to get it, or None."""
