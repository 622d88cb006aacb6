"""What torch's own SDPA back ends share: forcing exactly one of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from torch.nn.attention import SDPBackend, sdpa_kernel


def forced(backend: SDPBackend) -> Callable[[], AbstractContextManager[None]]:
    """A context maker under which SDPA may use `backend` only, and raises where it cannot."""
    return partial(sdpa_kernel, [backend])


def needs_cuda(device: str) -> str | None:
    """The reason why a back end that exists on CUDA only is missing here."""
    return None if device.startswith("cuda") else "exists on CUDA only"
