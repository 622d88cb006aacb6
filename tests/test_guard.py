"""What a model changes in its process is told of the model, and what torch changes is not."""

from __future__ import annotations

import os

import pytest

from repshift_cli.benchmark.guard import Guard


def test_what_a_model_sets_in_the_environment_is_put_back_and_what_torch_sets_is_torchs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    guard = Guard()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    assert guard.settle() == ()
    monkeypatch.setenv("OF_THE_MODEL", "1")
    assert guard.settle() == ("the model changed the process's environment (OF_THE_MODEL); it was put back",)
    assert "OF_THE_MODEL" not in os.environ and os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/somewhere"
