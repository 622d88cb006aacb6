"""What the tests on a GPU are made of, held to be right where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gpu_support import NAMES, moved
from operator_cases import NAMES as OPERATORS
from operator_cases import arranged, cells, engines, operator, run
from tiny import FAMILIES
from torch.utils._python_dispatch import TorchDispatchMode

from repshift_cli import registry
from repshift_cli.operators.log_linear import with_bit


def test_every_back_end_has_a_name_to_be_verified_by() -> None:
    assert set(NAMES) == set(registry.parts("attention")) - {"none", "sliding"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plain_forward_runs_where_the_model_is(family: str) -> None:
    """On torch's `meta` device, where a tensor left on the host is an error as it is on a GPU."""
    plain = moved(FAMILIES[family](), "meta", torch.float32)
    prefix = plain.prefix

    def cut(layer: int, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        return seen["resid_post"][:, : prefix + 4] if layer == 1 else seen["resid_post"]

    with torch.no_grad():
        out = plain.forward(cut)
    assert out.is_meta and out.dtype == torch.float32
    if isinstance(plain.inputs, dict) and "mask" in plain.inputs:
        assert plain.inputs["mask"].dtype == torch.bool


AS_DATA_SAYS = ("block_sparse", "dmc", "lessismore", "paged", "xattention")
"""Operators whose definition is written out place by place, by what the data holds."""


class FromHost(TorchDispatchMode):
    """Raises where a tensor is copied from the host, which a GPU's host waits for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if func is torch.ops.aten._to_copy.default and args[0].is_cpu and device is not None and device.type == "meta":
            raise AssertionError("a tensor is copied from the host")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_neither_waits_for_the_device_nor_leaves_a_tensor_on_the_host(name: str) -> None:
    """On `meta` both are errors. What waits in `attend` cannot be captured in a CUDA graph, and is timed with it."""
    module = operator(name)
    shape, spec = next(c for c in cells(module, [(2, 4, 4, 130), (2, 4, 4, 64)]))
    made = arranged(module, shape, spec, torch.float32)
    parameters = {n: p.to("meta") for n, p in made.parameters.items()}
    there = replace(made, q=made.q.to("meta"), k=made.k.to("meta"), v=made.v.to("meta"), parameters=parameters)
    for label, engine in engines(module):
        if engine.capturable and not engine.refused(shape, spec):
            with FromHost():
                assert run(engine, there, spec).is_meta, label
    if name not in AS_DATA_SAYS:
        assert module.reference(there.q, there.k, there.v, spec, **parameters).is_meta


@pytest.mark.parametrize("count", [1, 2, 7, 8, 13])
def test_the_numbers_that_have_a_bit(count: int) -> None:
    for bit in range(4):
        assert with_bit(bit, count, torch.device("cpu")).tolist() == [n for n in range(count) if n >> bit & 1]
