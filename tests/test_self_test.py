"""The gate on a real model in real processes: A/A passes, and 5% added to head's forward fails.

The model brings the clock of its process along, so that the verdicts do not hang on what else this machine does.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sham import ROOT

from repshift_cli.benchmark.delay import delayed, on_device

MODEL = '''
import os
import random
import time
import torch
import torch.nn.functional as F
from torch import nn

class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

class Clock:
    """Nanoseconds that pass when it is read, and in a forward: 20 ms, 0.6% apart from process to process."""

    def __init__(self):
        self.noise = random.Random(os.getpid())
        self.now, self.forward = 0, 20e6 * self.noise.gauss(1, 0.006)

    def __call__(self):
        self.now += 10_000
        return self.now

    def pass_forward(self):
        self.now += int(self.forward * self.noise.gauss(1, 0.004))

time.perf_counter_ns = clock = Clock()

class Timed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(32) for _ in range(2))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        clock.pass_forward()
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))

def make():
    torch.manual_seed(0)
    return Timed(), (torch.randn(1, 16, 32),)
'''

PROFILE = """
title = "a small model with a clock of its own"
model = "timed:make"
variant = "flash"
device = "cpu"
[thresholds]
rounds = 7
most-rounds = 10
process-rounds = 5
latency = 0.02
macs = 0
"""


@pytest.mark.slow
def test_the_self_test_on_a_real_model(tmp_path: Path) -> None:
    (tmp_path / "timed.py").write_text(MODEL)
    (tmp_path / "small.toml").write_text(PROFILE)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "repshift_cli", "gate", "--self-test", "--profile", "small.toml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plain, delayed_line, verdict = done.stdout.splitlines()[-3:]
    assert plain.startswith("A/A: PASS")
    assert delayed_line.startswith("with 5% added: FAIL: flash latency changed by +")
    assert verdict == "PASS: the gate lets A/A through and catches 5% here"


def test_the_delay_is_a_share_of_the_forward_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an injected clock: a forward of 1 ms ends at 1.05 ms, one of 10 ms at 10.5 ms."""
    clock = [0]

    def tick() -> int:
        clock[0] += 1000
        return clock[0]

    monkeypatch.setattr(time, "perf_counter_ns", tick)
    for length in (1_000_000, 10_000_000):

        def forward(length: int = length) -> str:
            clock[0] += length
            return "output"

        start = clock[0]
        assert delayed(forward, "cpu", 0.05)() == "output"
        assert clock[0] - start == pytest.approx(1.05 * length, abs=5000)


class Queue:
    """A host that launches ahead of a device, in microseconds: each operator takes both their time, in order."""

    def __init__(self, host: float, device: float, ramp: int = 0) -> None:
        self.host, self.device, self.ramp = host, device, ramp
        self.now = self.free = 0.0

    def launch(self, length: float, host: float | None = None) -> float:
        """When the device is done with what the host launches now."""
        self.now += self.host if host is None else host
        slow = 3 if self.ramp > 0 else 1  # the clocks have not risen yet
        self.ramp -= 1
        self.free = max(self.free, self.now) + slow * length
        return self.free

    def forward(self) -> None:
        for _ in range(100):
            self.launch(self.device)

    def sleep(self, cycles: int) -> None:
        self.launch(cycles / 1000)

    def nanoseconds(self) -> int:
        self.now += 0.05
        return int(1000 * self.now)

    def time(self, forward: Callable[[], Any], count: int) -> list[float]:
        """As CUDA events do: from when the device comes to the one to when it comes to the other."""
        events = []
        for _ in range(count):
            start = self.launch(0.0, 1.0)
            forward()
            events.append((self.launch(0.0, 1.0) - start) / 1000)
        self.now = max(self.now, self.free)
        return events


@pytest.mark.parametrize(("host", "device"), [(20, 5), (5, 20), (10, 10), (1, 40)])
@pytest.mark.parametrize("ramp", [0, 2500])
def test_the_delay_on_a_device_counts_whoever_sets_the_pace(host: float, device: float, ramp: int) -> None:
    """20 us of host and 5 us of device for each operator: a sleep of the device alone would add half a percent."""
    queue = Queue(host, device)
    plain = statistics.median(queue.time(queue.forward, 20))
    queue = Queue(host, device, ramp)
    longer = on_device(queue.forward, 0.05, queue, queue.sleep, queue.nanoseconds)
    longer()
    assert statistics.median(queue.time(longer, 20)) / plain == pytest.approx(1.05, abs=0.006)
