"""How a case fails: what an error says in one line, and which errors end more than the case."""

from __future__ import annotations

from repshift_cli.benchmark.launchers import Stopped
from repshift_cli.records import Case, Record, visible

POISON = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "device-side assert",
    "unspecified launch failure",
    "hardware stack error",
    "uncorrectable ecc error",
    "launch timed out",
    "invalid program counter",
    "not supported on global/shared address space",
    "uncorrectable nvlink error",
    "invalid access of peer gpu memory",
    "cuda error: unknown error",
)
"""What CUDA says when its context is lost: every later call in the process fails (CUDA's runtime API, cudaError)."""


PASSED_ON = (KeyboardInterrupt, Stopped)
"""What ends more than a case; whatever else a model raises takes its case with it and no more."""


NO_KERNEL = ("No available kernel", "No viable backend for scaled_dot_product_attention")
NO_KERNEL_HELP = (
    "the attention that was asked for takes no such head dim, dtype, mask or length on this device; torch's warnings "
    "on stderr say which, and the back ends efficient and vanilla take most"
)
"""What torch says of a call that its one allowed kernel does not take, and what to do about it."""


class CaptureFailed(Exception):
    """A forward could not be captured in a CUDA graph.

    torch cannot end such a capture: its stream stays the current one, and its allocator refuses from then on to give
    memory back. So the process is lost as with its context.
    """


class ContextLost(Exception):
    """A case took the CUDA context with it; nothing more can be measured in this process."""

    def __init__(self, case: Case | None, reason: str) -> None:
        super().__init__(case, reason)
        self.case, self.reason = case, reason


def failed(case: Case, tokens: tuple[int, ...], error: BaseException) -> Record:
    """The record of a case that was tried and failed."""
    return Record(case, "failed", reason=reason_of(error), tokens=tokens)


def reason_of(error: BaseException) -> str:
    """One line, visible: out of memory in plain words, else the error's class and first line."""
    lines = [line.strip() for line in _told(error).splitlines() if line.strip()]
    name = visible(type(error).__name__)
    text = visible(lines[0]) if lines else name
    if is_out_of_memory(error):
        return f"out of memory: {text}; try a smaller batch"
    if words := next((words for words in NO_KERNEL if words in text), None):
        return f"{name}: {words}: {NO_KERNEL_HELP}"
    return text if type(error).__module__.startswith("repshift_cli") else f"{name}: {text}"


def _told(error: BaseException) -> str:
    """An error's message, nothing where it cannot say it."""
    try:
        return str(error)
    except Exception:
        return ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: of Python, of torch on a GPU, or of its CPU allocator, which has words only."""
    told = _told(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in told or "out of memory" in told


def is_poison(error: BaseException) -> bool:
    """Whether an error means that this process measures nothing more: CUDA's context is lost, which torch tells by
    CUDA's own words only, or a capture could not be ended."""
    if isinstance(error, CaptureFailed):
        return True
    told = reason_of(error).lower()
    return "cuda" in told and any(words in told for words in POISON)
