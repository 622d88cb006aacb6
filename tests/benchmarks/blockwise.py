"""Blocks against whole matrices: ToMe's matching and the columns of an attention map, by CPU time and by memory.

`python tests/benchmarks/blockwise.py [TOKENS ...]`. One thread, fp32, batch 1, each cell in its own process: the CPU
time that it used (other programs do not count in it), the least of three, and how far the process grew above q and k.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from repshift_cli.kernels import maps, matching
from repshift_cli.kernels.sdpa import AttentionCall

HEADS, DIM, REPEATS = 4, 64, 3


def matched_whole(metric: Tensor) -> Any:
    """As ToMe's authors write it: all similarities, then the best of each row."""
    return (metric[:, ::2] @ metric[:, 1::2].transpose(1, 2)).max(-1)


def matched_in_blocks(metric: Tensor) -> Any:
    return matching.best_match(metric[:, ::2], metric[:, 1::2])


def columns(whole: bool) -> Callable[[Tensor], Any]:
    def means(keys: Tensor) -> Tensor:
        heads = keys.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return maps.column_means(AttentionCall(heads, heads, heads), whole=whole)

    return means


WORK: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "matching, whole": (matched_whole, DIM),
    "matching, blocks": (matched_in_blocks, DIM),
    "columns, whole": (columns(True), HEADS * DIM),
    "columns, blocks": (columns(False), HEADS * DIM),
}


def measure(name: str, tokens: int) -> None:
    """Print the milliseconds and the MiB of one cell."""
    torch.set_num_threads(1)
    work, width = WORK[name]
    work(torch.randn(1, 64, width))
    given = torch.randn(1, tokens, width)
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(REPEATS):
        start = time.process_time()
        work(given)
        times.append(time.process_time() - start)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{min(times) * 1e3:.0f} ms, {grown / 1024:.0f} MiB")


def main() -> None:
    """One row for each way, one column for each length."""
    lengths = [int(n) for n in sys.argv[1:]] or [4096, 8192, 16384]
    print(f"| | {' | '.join(f'{n} tokens' for n in lengths)} |", "|---" * (len(lengths) + 1) + "|", sep="\n")
    for name in WORK:
        cells = [_in_a_process(name, n) for n in lengths]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def _in_a_process(name: str, tokens: int) -> str:
    command = [sys.executable, __file__, "--cell", name, str(tokens)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cell"]:
        measure(sys.argv[2], int(sys.argv[3]))
    else:
        main()
