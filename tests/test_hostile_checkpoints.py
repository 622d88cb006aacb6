"""Checkpoints that want more than to be read: to run code of their own, or to take all of the memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from test_models import saved

from repshift_cli import cli

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").write_text("ran")
from transformers import PretrainedConfig
class Config(PretrainedConfig):
    model_type = "stranger"
"""


def with_config(folder: Path, **changes: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | changes))
    return folder


@pytest.mark.parametrize("command", [("explain",), ("bench", "--dry-run"), ("bench", "--rounds", "1")], ids=" ".join)
def test_the_code_of_a_checkpoint_is_never_run(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal transformers would ask, and a `yes |` would answer."""
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    monkeypatch.chdir(tmp_path)
    saved("vit", tmp_path)
    with_config(tmp_path, model_type="stranger", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    (tmp_path / "code.py").write_text(CODE)
    name, *more = command
    assert cli.run([name, "--model", f"hf:{tmp_path}", *more], False) == 2
    assert "needs Python code that comes with it" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_known_model_with_code_beside_it_is_built_from_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    saved("vit", tmp_path)
    with_config(tmp_path, auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    (tmp_path / "code.py").write_text(CODE)
    assert cli.run(["explain", "--model", f"hf:{tmp_path}"], False) == 0
    assert f"{tiny.DEPTH}: " in capsys.readouterr().out and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "intermediate_size"])
def test_more_weights_than_memory_are_refused_before_any_is_made(
    field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved("vit", tmp_path)
    with_config(tmp_path, **{field: 10**9})
    assert cli.run(["explain", "--model", f"hf:{tmp_path}"], False) == 2
    error = capsys.readouterr().err
    assert "of weights in fp32, and this machine has" in error and "num_hidden_layers" in error
