"""Named ranges around the parts of a forward, for a profiler; next to nothing while none is listening.

Standard library only: pruning opens ranges without knowing any profiler, and the probe that records says how one is
opened. A range's name in a trace is PREFIX and the part, or PREFIX and `block 3`, blocks counted from 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

Opener = Callable[[str], AbstractContextManager[Any]]

PREFIX = "repshift/"
BLOCK = "block "
CONVOLUTION = "convolution"
MIXER = "mixer"
"""What stands in the place of attention in a block that has no other branch: a state space model's scan."""
PARTS = ("attention", MIXER, "projection", "mlp", CONVOLUTION, "norm", "score", "select", "cut")
"""The parts that ranges name; what lies outside all of them is `other`."""
SELECTION = ("score", "select", "cut")
"""The parts that pruning adds."""

_silent: AbstractContextManager[None] = nullcontext()
_opener: Opener | None = None


def part(name: str) -> AbstractContextManager[Any]:
    """A range around one part of a forward; while nobody listens it is one call and one comparison."""
    return _silent if _opener is None else _opener(PREFIX + name)


@contextmanager
def listening(opener: Opener | None) -> Iterator[None]:
    """Within it `part` opens its ranges by `opener(name)`, or none: what is inside belongs to the range around it."""
    global _opener
    before, _opener = _opener, opener
    try:
        yield
    finally:
        _opener = before
