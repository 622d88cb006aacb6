"""What one pruned layer costs the host, launches apart: `python tests/benchmarks/host_cost.py`.

One block whose branches are the identity, on a CPU, with the Triton path forced and every launch replaced by nothing:
what is left is the Python between score, select and cut, and the empty outputs that torch allocates. The same block
without pruning is subtracted. CUDA's own calls (the current device, a launch) are not in it; not yet seen on a GPU.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from repshift_cli.benchmark import builder
from repshift_cli.kernels import _cut_triton, _select_triton, _shift_triton, paths
from repshift_cli.records import Case, Site, Step, Subject

LAYERS = 8
CASE = Case("host", "random", "random", 224, None, 1, "fp32", "cpu", "vanilla")
OPTIONS = {"operation": "mlp", "distance": "l2", "form": "update"}


class Launch:
    """A kernel that launches nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *_, **__: None


@contextmanager
def without_launches() -> Iterator[None]:
    """Within it Triton's wrappers do all but launch, also for tensors on a CPU."""
    nothing = {_shift_triton: "_score", _select_triton: "_top", _cut_triton: "_cut"}
    patched = [mock.patch.object(module, name, Launch()) for module, name in nothing.items()]
    patched.append(mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}))
    for patch in patched:
        patch.start()
    try:
        with paths.using("triton"):
            yield
    finally:
        for patch in patched:
            patch.stop()


class Block(nn.Module):
    """x' = x + x, x^ = x' + x': two sums and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.middle, self.mlp = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(self.middle(x))


def step(layers: tuple[int, ...]) -> Step:
    """The stack with these blocks pruned."""
    blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
    sites = tuple(Site(b, b.attention, b.middle, b.mlp) for b in blocks)
    inputs = (torch.zeros(1, 197, 8),)
    subject = Subject(blocks, inputs, (inputs,), sites, 1, 196, "img", lambda out: None, lambda out: out)
    pruned = replace(CASE, pruning="repshift", keep=0.99, layers=layers).with_options(**OPTIONS)
    return builder.eager_step(pruned if layers else CASE, subject)


def microseconds(repeats: int = 300) -> float:
    """Per pruned layer: a forward with all blocks pruned less one with none, the median of pairs, over the blocks."""
    plain, pruned = step(()), step(tuple(range(1, LAYERS + 1)))
    differences = []
    with without_launches():
        for _ in range(repeats):
            times = []
            for one in (plain, pruned):
                with one.active():
                    one.forward()
                    begun = time.perf_counter_ns()
                    one.forward()
                    times.append(time.perf_counter_ns() - begun)
            differences.append((times[1] - times[0]) / 1000 / LAYERS)
    return statistics.median(differences)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{microseconds():.1f} us per pruned layer on the host, launches apart")
