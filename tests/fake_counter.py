"""An instrument for tests, importable in the child: it counts what the traffic model sees, on any device.

FAKE_COUNTER in the environment makes it misbehave while it is imported, before anything heavy is.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repshift_cli.counters.base.traffic import CounterError, Traffic

LABEL = "counter"
MISDEED = os.environ.get("FAKE_COUNTER", "")

if MISDEED == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if MISDEED == "hang":
    time.sleep(600)
if MISDEED == "exit":
    print("the last words\n")
    os._exit(3)
if MISDEED == "refuse":
    raise CounterError("no privilege to read the counters")
if MISDEED == "raise":
    raise ZeroDivisionError("division by zero")


def unavailable(device: str) -> str | None:
    return None


def command(worker: list[str], folder: Path) -> list[str]:
    return worker


def collect(counted: Any, folder: Path, ranges: int) -> list[Traffic]:
    return [Traffic.of(read, written) for read, written in counted]


@contextlib.contextmanager
def counting(device: str) -> Iterator[Any]:
    from repshift_cli.probes.base.traffic_model import TrafficModel

    def count(work: Any) -> list[int]:
        print("rubbish on stdout")
        with TrafficModel() as model:
            work()
        return [model.read, model.written]

    yield count


def tiny_model() -> Any:
    """A model of one's own, for `--model fake_counter:tiny_model`."""
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    module = ViTModel(ViTConfig(**sizes, image_size=32, patch_size=8))
    import torch

    return module, {"pixel_values": torch.randn(2, 3, 32, 32)}
