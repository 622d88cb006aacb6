"""What torch's dispatch modes do not see: launches of Triton kernels, told with their bytes to whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Listener = Callable[[str, int, int], None]

listeners: list[Listener] = []
"""Empty outside of counting passes, so that a wrapper need not work its bytes out."""


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within it `listener(name, read, written)` is told every launch, in bytes as if no cache kept anything."""
    listeners.append(listener)
    try:
        yield
    finally:
        listeners.remove(listener)


def tell(name: str, read: int, written: int) -> None:
    """One launch, to all who listen."""
    for listener in listeners:
        listener(name, read, written)
