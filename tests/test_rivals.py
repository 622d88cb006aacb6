"""Rival methods of token reduction against loops written from their papers and code, on tensors and in whole models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from tiny import FAMILIES, Plain, case, one_thread  # noqa: F401
from torch import Tensor

from repshift_cli.attention import flash, math as math_backend, vanilla
from repshift_cli.attention.base.swap import attending
from repshift_cli.kernels.sdpa import AttentionCall
from repshift_cli.records import UsageError, call, left, dropped_share
from repshift_cli.reduction import tome
from repshift_cli.reduction.engine.hooks import pruned
from repshift_cli.reduction.engine.seen import Seen

EXACT = {"rtol": 0, "atol": 1e-10}


def run(plain: Plain, method: Any, keep: float, layers: tuple[int, ...], attention: Any = vanilla, **options: Any) -> Any:
    subject = tiny.subject(plain.module, plain.inputs)
    given = case(pruning=method.__name__.rpartition(".")[2], keep=keep, layers=layers).with_options(**options)
    with torch.inference_mode(), attending(attention), pruned(subject, method, given) as dropped:
        out = plain.compared(call(plain.module, plain.inputs)).clone()
    return out, dropped


def test_try() -> None:
    plain = FAMILIES["vit"]()
    for b in (vanilla, flash, math_backend):
        out, dropped = run(plain, tome, 0.7, (1, 2), b, proportional="on")
        print(out[0], [k.shape for k in dropped.kept], dropped.traced[-1].ends[0])
