"""What a model may change in the process that measures it and would carry over to the next: noticed and put back."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


def _set_environment(wanted: dict[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


SEED = "seed"
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
    Setting("sys.stdout", *_attribute(sys, "stdout")),
    Setting("sys.stderr", *_attribute(sys, "stderr")),
    Setting("sys.excepthook", *_attribute(sys, "excepthook")),
    Setting("environment", lambda: dict(os.environ), _set_environment),
)


@dataclass
class Guard:
    """The settings as they were when it was made."""

    before: dict[str, Any] = field(default_factory=lambda: {s.name: s.read() for s in SETTINGS})

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
            yield f"the model changed the process's {setting.name}{_words(was, now)}; it was put back"


def _words(was: Any, now: Any) -> str:
    if isinstance(was, dict):
        names = sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k))
        return f" ({', '.join(names[:5])})"
    return f" from {was} to {now}" if isinstance(was, (bool, int, str, torch.dtype)) else ""
