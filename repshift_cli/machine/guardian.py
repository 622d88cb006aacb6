"""When a command is gone, SIGKILL included, what it has started goes too: a guardian in each group sees to that.

Standard library alone. As a script, `guardian.py FD PROGRAM ARGUMENT...`, it becomes the program, guarded.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with(life: int) -> None:
    """End this process and all of its group when the other end of the pipe `life` is closed.

    A guardian sees to that, forked while this process is still small: a model that hangs in C lets no thread run.
    """
    with contextlib.suppress(OSError, AttributeError):  # Linux has it; it is for the case that the guardian was killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.fork():
        os.close(life)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(life, 0)
    os.closerange(1, 1024)
    os.read(0, 1)  # nobody writes: it returns when the other end is closed
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    end_with(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
