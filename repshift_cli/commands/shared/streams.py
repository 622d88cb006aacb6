"""Standard streams that may be closed, full or left by their reader: none of that ends a command or costs a run."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

SECONDS_FOR_THREADS = 3.0
"""How long threads that a model left behind may keep the command from ending."""


class Patient(io.RawIOBase):
    """A descriptor to write to: what it does not take any more goes nowhere.

    A reader that has gone has read enough (`| head -1`). Any other `trouble` (a full disk) is kept, to be told.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.trouble: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: Any) -> int:
        """As many bytes as were taken."""
        try:
            return os.write(self._descriptor, data)
        except BrokenPipeError:
            pass
        except OSError as error:
            self.trouble = error
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._descriptor)
            os.close(nowhere)
        return len(data)


def prepare() -> None:
    """Stand-ins for streams that the shell closed, since whatever is opened next would get their numbers; and patience
    for those that are open. A character that an encoding lacks is shown as `?`."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)
            if opened != descriptor:
                os.close(opened)
            os.set_inheritable(descriptor, True)
            setattr(sys, name, open(descriptor, "r+" if name == "stdin" else "w", closefd=False))  # noqa: SIM115
        elif name != "stdin" and isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _patient(stream, descriptor))


def _patient(stream: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(Patient(descriptor)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def end(code: int) -> NoReturn:
    """Leave with the exit code, or with 1 where not all could be written; no Ctrl-C disturbs it any more.

    Threads that a model has left behind are waited for a little and no longer.
    """
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if trouble := _trouble():
        print(f"error: cannot write to stdout: {trouble.strerror}; the output is not whole", file=sys.stderr)
        code = code or 1
    others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if others:
        threading.Thread(target=_end_soon, args=(code,), daemon=True).start()
    sys.exit(code)


def _trouble() -> OSError | None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.trouble if isinstance(raw, Patient) else None


def _end_soon(code: int) -> NoReturn:
    time.sleep(SECONDS_FOR_THREADS)
    os._exit(code)
