"""What a model may change in the process that measures it and would carry over to the next: noticed and put back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """One global setting: what it is called, how it is read and how it is set."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


def _go_back(folder: str | None) -> None:
    if folder is not None and os.path.isdir(folder):
        os.chdir(folder)


TORCHS_OWN = frozenset({"TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"})
"""Variables that torch itself sets when it first loads its compiler, whatever the model."""


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in TORCHS_OWN}


def _set_environment(wanted: dict[str, str]) -> None:
    for name in _environment().keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


@lru_cache(maxsize=1)
def _spare() -> int:
    """A descriptor of stderr as it was first, to open closed streams by."""
    try:
        return os.dup(2)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)


def _descriptors() -> tuple[bool, bool]:
    """Whether 1 and 2 are open."""
    return _is_open(1), _is_open(2)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _reopen(wanted: tuple[bool, bool]) -> None:
    for descriptor, was_open in zip((1, 2), wanted, strict=True):
        if was_open and not _is_open(descriptor):
            os.dup2(_spare(), descriptor)


def _stream(name: str) -> Setting:
    """`sys.stdout` or `sys.stderr`, an open one in the place of one that was closed."""

    def read() -> Any:
        stream = getattr(sys, name)
        return CLOSED if stream is not None and stream.closed else stream

    def write(was: Any) -> None:
        if was is not None and (was is CLOSED or was.closed):
            descriptor = 1 if name == "stdout" else 2
            was = open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        setattr(sys, name, was)

    return Setting(f"sys.{name}", read, write)


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


SEED = "seed"
CLOSED = "closed"
SETTINGS = (
    Setting("default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("threads", torch.get_num_threads, torch.set_num_threads),
    Setting("grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting(SEED, torch.initial_seed, torch.manual_seed),
    Setting(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    Setting("cudnn.deterministic", *_attribute(torch.backends.cudnn, "deterministic")),
    Setting("cudnn.benchmark", *_attribute(torch.backends.cudnn, "benchmark")),
    Setting("float32 matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("current folder", _folder, _go_back),
    Setting("descriptors of stdout and stderr", _descriptors, _reopen),
    _stream("stdout"),
    _stream("stderr"),
    Setting("sys.excepthook", *_attribute(sys, "excepthook")),
    Setting("environment", _environment, _set_environment),
)


@dataclass
class Guard:
    """The settings as they were when it was made."""

    before: dict[str, Any] = field(default_factory=lambda: {s.name: s.read() for s in SETTINGS})

    def __post_init__(self) -> None:
        _spare()

    def settle(self, seed: int | None = None) -> tuple[str, ...]:
        """Put back what has changed, and say what it was; `seed` is the one that we have set ourselves."""
        if seed is not None and torch.initial_seed() == seed:
            torch.manual_seed(self.before[SEED])
        return tuple(self._changes())

    def _changes(self) -> Iterator[str]:
        for setting in SETTINGS:
            was, now = self.before[setting.name], setting.read()
            if was is now or was == now:
                continue
            setting.write(was)
            self.before[setting.name] = setting.read()  # a stream that was closed is another one now
            yield f"the model changed the process's {setting.name}{_words(was, now)}; it was put back"


def _words(was: Any, now: Any) -> str:
    if isinstance(was, dict):
        names = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
        return f" ({', '.join(names[:5])})"
    return f" from {was} to {now}" if isinstance(was, (bool, int, str, torch.dtype)) else ""
