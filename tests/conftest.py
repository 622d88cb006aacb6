"""Machines played by fakes, and the skipping of tests marked `gpu` where torch has no CUDA device."""

import sys

import pytest
from fake_machine import FakeNvml, fake_torch

from repshift_cli import machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = machine.why_no_cuda() if marked else None
    for item in marked:
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(machine, "import_torch", fake_torch)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    return monkeypatch


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(machine, "import_torch", lambda: fake_torch(devices=0, cuda=None))
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(refuse=("init",)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return monkeypatch
