"""The selective scan against the recurrence written as a loop over tokens in float64."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from repshift_cli.kernels import scan as _scan
from repshift_cli.kernels.scan import plain_scan, scan_in_use, selective_scan

BATCH, CHANNELS, STATES = 2, 5, 3
LENGTHS = (1, 2, 3, 7, 64, 197, 1000)


def drawn(length: int, dtype: torch.dtype = torch.float64, speed: float = 1.0) -> dict[str, Any]:
    """Random arguments; `speed` multiplies A, so that a state is forgotten `speed` times as fast."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "u": normal(BATCH, CHANNELS, length),
        "delta": normal(BATCH, CHANNELS, length),
        "A": -speed * normal(CHANNELS, STATES).exp(),
        "B": normal(BATCH, STATES, length),
        "C": normal(BATCH, STATES, length),
        "D": normal(CHANNELS),
        "z": normal(BATCH, CHANNELS, length),
        "delta_bias": normal(CHANNELS),
        "delta_softplus": True,
    }


def sequential(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **options: Any) -> Tensor:
    """The recurrence, token by token, in float64."""
    u, delta, A, B, C = (t.double() for t in (u, delta, A, B, C))
    D, z, bias = (None if (t := options.get(n)) is None else t.double() for n in ("D", "z", "delta_bias"))
    delta = delta if bias is None else delta + bias[:, None]
    delta = F.softplus(delta) if options.get("delta_softplus") else delta
    h = torch.zeros(*u.shape[:2], A.shape[1], dtype=torch.float64)
    outputs = []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[:, None, :, t]
        y = torch.einsum("bdn,bn->bd", h, C[:, :, t])
        y = y if D is None else y + D * u[:, :, t]
        outputs.append(y if z is None else y * F.silu(z[:, :, t]))
    return torch.stack(outputs, dim=2)


@pytest.mark.parametrize("length", LENGTHS)
def test_it_is_the_recurrence(length: int) -> None:
    given = drawn(length)
    torch.testing.assert_close(selective_scan(**given), sequential(**given), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", LENGTHS)
def test_it_accumulates_in_fp32_at_least(length: int) -> None:
    given = drawn(length, torch.float32)
    torch.testing.assert_close(selective_scan(**given), sequential(**given).float(), rtol=2e-5, atol=2e-5)
    coarse = {n: v.bfloat16() if n in ("u", "delta", "B", "C", "z") else v for n, v in given.items()}
    out = selective_scan(**coarse)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, sequential(**coarse).bfloat16(), rtol=2**-7, atol=1e-4)


@pytest.mark.parametrize("speed", [1e-6, 1e-3, 30.0, 1e3, 1e6])
@pytest.mark.parametrize("length", [7, 197, 1000])
def test_neither_very_slow_nor_very_fast_forgetting_overflows(length: int, speed: float) -> None:
    given = drawn(length, speed=speed)
    out = selective_scan(**given)
    assert out.isfinite().all()
    torch.testing.assert_close(out, sequential(**given), rtol=1e-10, atol=1e-10)
    single = drawn(length, torch.float32, speed=speed)
    torch.testing.assert_close(selective_scan(**single), sequential(**single).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("left_out", ["D", "z", "delta_bias", "delta_softplus"])
def test_what_is_optional_can_be_left_out(left_out: str) -> None:
    given = drawn(50)
    del given[left_out]
    given["delta"] = given["delta"].abs()  # without softplus the step must not be negative
    if left_out == "delta_softplus":
        given["delta_bias"] = given["delta_bias"].abs()
    torch.testing.assert_close(selective_scan(**given), sequential(**given), rtol=1e-10, atol=1e-10)


def test_tokens_that_are_not_contiguous_and_inputs_are_left_as_they_are() -> None:
    given = {n: v.flip(-1) if n in ("u", "delta", "B", "C", "z") else v for n, v in drawn(30).items()}
    turned = {n: v.transpose(1, 2).contiguous().transpose(1, 2) if torch.is_tensor(v) and v.ndim == 3 else v
              for n, v in given.items()}  # fmt: skip
    before = {n: v.clone() for n, v in turned.items() if torch.is_tensor(v)}
    torch.testing.assert_close(selective_scan(**turned), sequential(**given), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(before[n], turned[n]) for n in before)


def test_the_flop_counter_sees_four_macs_per_token_channel_and_state() -> None:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        selective_scan(**drawn(40))
    assert counter.get_total_flops() == 2 * 4 * BATCH * CHANNELS * STATES * 40


@pytest.fixture
def mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A package `mamba_ssm` whose scan notes what it was given."""
    calls: list[Any] = []

    def selective_scan_fn(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((args, kwargs))
        return plain_scan(*args, **kwargs)

    module = ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    _scan._mamba_ssm.cache_clear()
    monkeypatch.setattr(_scan, "_mamba_ssm", _scan._mamba_ssm.__wrapped__)
    return calls


def on(device: str, dtype: torch.dtype) -> Any:
    return SimpleNamespace(is_cuda=device == "cuda", dtype=dtype)


def test_mamba_ssm_is_used_on_cuda_where_installed(mamba_ssm: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert scan_in_use(on("cuda", torch.bfloat16)) == "mamba-ssm"
    assert scan_in_use(on("cuda", torch.float64)) == "plain torch"
    assert scan_in_use(on("cpu", torch.float32)) == "plain torch"
    given = drawn(9)
    selective_scan(**given)
    assert mamba_ssm == []
    monkeypatch.setattr(_scan, "scan_in_use", lambda u: "mamba-ssm")
    out = selective_scan(**given)
    (args, kwargs), = mamba_ssm  # fmt: skip
    assert len(args) == 5
    assert set(kwargs) == {"D", "z", "delta_bias", "delta_softplus"}
    torch.testing.assert_close(out, sequential(**given), rtol=1e-10, atol=1e-10)


def test_without_mamba_ssm_the_plain_scan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", None)
    monkeypatch.setattr(_scan, "_mamba_ssm", _scan._mamba_ssm.__wrapped__)
    assert scan_in_use(on("cuda", torch.bfloat16)) == "plain torch"


@pytest.mark.gpu
def test_on_cuda_it_is_the_recurrence_too() -> None:
    given = drawn(197, torch.float32)
    there = {n: v.cuda() if torch.is_tensor(v) else v for n, v in given.items()}
    torch.testing.assert_close(selective_scan(**there).cpu(), sequential(**given).float(), rtol=1e-4, atol=1e-4)
