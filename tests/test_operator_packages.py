"""What the engines call in packages that run on CUDA only: their signatures, and flash-linear-attention's plain forms.

Where a package is not installed its test is skipped: no CI here has a GPU.
"""

import inspect
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operator_cases import SPEC, distance, inputs, operator
from torch import Tensor

from repshift_cli.machine.packages import is_installed
from repshift_cli.operators import linear, log_linear, nsa
from repshift_cli.operators.base.spec import Spec
from repshift_cli.operators.base.states import features, normalised, with_ones

CAUSAL = Spec(causal=True)


def function(module: str, name: str) -> Any:
    if not is_installed(module.partition(".")[0]):
        pytest.skip(f"{module} is not installed")
    try:
        return getattr(import_module(module), name)
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"{module} cannot be imported here: {error}")


@pytest.mark.parametrize(
    ("module", "name", "named"),
    [
        ("fla.ops.linear_attn", "chunk_linear_attn", {"scale", "normalize"}),
        ("flash_attn", "flash_attn_func", {"causal", "window_size"}),
        ("flash_attn", "flash_attn_with_kvcache", {"cache_seqlens", "block_table", "causal"}),
        ("flash_attn_interface", "flash_attn_func", {"causal"}),
        ("flash_attn.cute", "flash_attn_func", {"causal"}),
    ],
)
def test_what_is_called_takes_what_it_is_given(module: str, name: str, named: set[str]) -> None:
    taken = inspect.signature(function(module, name)).parameters
    assert next(iter(taken)) == "q" and named <= set(taken)
    assert [n.removesuffix("_cache") for n in list(taken)[1:3]] == ["k", "v"]


def swapped(x: Tensor) -> Tensor:
    """(B, H, N, d) <-> (B, N, H, d)."""
    return x.transpose(1, 2).contiguous()


def test_linear_attention_is_that_of_the_package() -> None:
    theirs = function("fla.ops.linear_attn.naive", "naive_recurrent_linear_attn")
    q, k, v = inputs(2, 2, 2, 130)
    out = theirs(*map(swapped, (features(q), features(k), v)), scale=1.0, normalize=True)[0]
    assert distance(swapped(out), linear.reference(q, k, v, CAUSAL)) < 1e-6


def test_the_levels_of_log_linear_attention_are_those_of_the_package() -> None:
    """Without a gate, and the normaliser as one more column of values."""
    theirs = function("fla.ops.log_linear_attn.naive", "naive_log_linear_attn")
    q, k, v = inputs(2, 2, 2, 130)
    weights = log_linear.arrange(q, k, v, CAUSAL).parameters["of_levels"]
    strength, gate = F.softplus(q @ weights), torch.zeros(2, 130, 2).double()
    out = theirs(*map(swapped, (features(q), features(k), with_ones(v))), gate, swapped(strength), scale=1.0)
    assert distance(normalised(swapped(out)), log_linear.reference(q, k, v, CAUSAL, weights)) < 1e-12


def test_the_chosen_blocks_of_nsa_are_attended_to_as_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = function("fla.ops.nsa.naive", "naive_nsa_selection")
    q, k, v = inputs(1, 32, 2, 100)
    spec = Spec(causal=True, block=SPEC.block, top=SPEC.top, window=1)
    taken: list[Tensor] = []
    choose = nsa.choose

    def choosing(mass: Tensor, *given: Any) -> Tensor:
        taken[:] = mass, choose(mass, *given)
        return taken[1]

    monkeypatch.setattr(nsa, "choose", choosing)
    made = operator("nsa").arrange(q, k, v, spec).parameters
    pools = {name: made[name] for name in ("pool_keys", "pool_values")}
    whole = nsa.attend(q, k, v, spec, **pools, gates=torch.zeros_like(made["gates"]))
    mass, chosen = taken
    pooled = torch.einsum("bhcnd,hn->bhcd", v[:, :, :96].unflatten(2, (6, 16)), pools["pool_values"].softmax(-1))
    compressed, local = mass @ pooled.repeat_interleave(16, 1), v.repeat_interleave(16, 1)
    selected = swapped(theirs(*map(swapped, (q, k, v, chosen)), block_size=spec.block))
    assert distance(2 * whole - compressed - local, selected) < 1e-6
