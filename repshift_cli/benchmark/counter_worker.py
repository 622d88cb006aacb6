"""The child process that counts HBM traffic: `python -m repshift_cli.benchmark.counter_worker REQUEST ANSWER`.

It builds what the request names, a case or the known work of the calibration, and runs it within the instrument's
ranges. Run twice (ncu may), it does the same twice.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from repshift_cli.counters.base import calibration
from repshift_cli.counters.base.traffic import CounterError
from repshift_cli.machine import device as devices
from repshift_cli.records import Case
from repshift_cli.records.json_codec import from_plain

WARM_UP = 2


def main(arguments: list[str]) -> int:
    """Answer one request; the exit code is 0 wherever there is an answer, an error's reason among them."""
    request_file, answer_file = map(Path, arguments)
    try:
        answer: dict[str, Any] = {"counted": answered(json.loads(request_file.read_text(encoding="utf-8")))}
    except Exception as error:
        answer = {"error": _reason(error)}
    answer_file.write_text(json.dumps(answer), encoding="utf-8")
    return 0


def answered(request: dict[str, Any]) -> list[Any]:
    """What the instrument counts in each range of the request."""
    device = request["device"]
    instrument = importlib.import_module(request["instrument"])
    torch = devices.import_torch()
    if ":" in device:
        torch.cuda.set_device(device)
    with ExitStack() as stack:
        works = _forwards(request, stack) if request["case"] else calibration.known_work(torch, device)
        count: Callable[[Callable[[], Any]], Any] = stack.enter_context(instrument.counting(device))
        return [count(work) for work in works]


def _forwards(request: dict[str, Any], stack: ExitStack) -> list[Callable[[], Any]]:
    """The forward of the case, warmed up, once for every range."""
    from repshift_cli.benchmark.builder import lone_step

    step = lone_step(from_plain(Case, request["case"]))
    stack.enter_context(step.active())
    for _ in range(WARM_UP):
        step.forward()
    return [step.forward] * int(request["ranges"])


def _reason(error: Exception) -> str:
    from repshift_cli.benchmark.failures import reason_of

    return str(error) if isinstance(error, CounterError) else reason_of(error)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
