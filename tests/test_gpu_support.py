"""What the tests on a GPU are made of, held to be right where there is none."""

from __future__ import annotations

import pytest
import torch
from gpu_support import NAMES, moved
from tiny import FAMILIES

from repshift_cli import registry


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
