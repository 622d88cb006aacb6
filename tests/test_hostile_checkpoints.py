"""Checkpoints that want more than to be read: to run code of their own, or to take all of the memory."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import tiny
from mutants import mutate, spoiled
from safetensors.torch import load_file
from test_models import saved

from repshift_cli import cli
from repshift_cli.models.inputs.images import load_images
from repshift_cli.records import UsageError

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


# --- the campaign -----------------------------------------------------------------------------------------------------


class Runs:
    """What unpickling turns into a call."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def refused(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """What is said, where the command ends with a sentence, or with a failed row."""
    code = cli.run(list(command), False)
    out, said = capsys.readouterr()
    assert code in (1, 2) and "internal error" not in said and "Traceback" not in said, said
    return str(out + said)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt", "model.ckpt", "model.pkl"])
def test_weights_are_never_unpickled(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, mark = tmp_path / "checkpoint", tmp_path / "ran"
    saved("vit", folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Runs(mark)))
    refused(capsys, "explain", "--model", f"hf:{folder}")
    monkeypatch.chdir(tmp_path)
    refused(capsys, "bench", "--model", "vit_t", "--rounds", "1", "--in-process", "--weights", str(folder / name))
    assert not mark.exists()


@pytest.mark.parametrize("way", ["../outside.safetensors", "ABSOLUTE", "sub/../../outside.safetensors"])
def test_an_index_leads_nowhere_else(way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "checkpoint"
    saved("vit", folder)
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = list(load_file(tmp_path / "outside.safetensors"))
    there = str(tmp_path / "outside.safetensors") if way == "ABSOLUTE" else way
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, there)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "outside" in refused(capsys, "explain", "--model", f"hf:{folder}")


@pytest.mark.slow
def test_spoilt_checkpoints_give_a_model_or_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mutants: int
) -> None:
    """Configurations that no program wrote, and weights cut or changed; 50 in CI, `--mutants` for more."""
    saved("vit", tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    good, bytes_of = json.loads(config.read_text("utf-8")), weights.read_bytes()
    rng, wrong = random.Random(0), dict[str, str]()
    for number in range(mutants // 60):
        if rng.random() < 0.6:
            config.write_text(json.dumps(mutate(good, rng)))
        else:
            head = rng.randrange(8, 400)
            weights.write_bytes(
                spoiled(bytes_of[:head], rng) + bytes_of[head:] if number % 2 else spoiled(bytes_of, rng)
            )
        code = cli.run(["explain", "--model", f"hf:{tmp_path}"], False)
        said = capsys.readouterr().err
        if code not in (0, 2) or "internal error" in said or "Traceback" in said:
            wrong.setdefault(said.strip()[:300], f"mutant {number}: {config.read_text()[:300]}")
        config.write_text(json.dumps(good))
        weights.write_bytes(bytes_of)
    assert not wrong, wrong


def test_an_image_bomb_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A PNG of 60,000 by 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
    (tmp_path / "bomb.png").write_bytes(image + chunk(b"IEND", b""))
    with pytest.raises(
        UsageError, match=r"cannot read the image .*bomb\.png: Image size .* could be decompression bomb"
    ):
        load_images(str(tmp_path / "bomb.png"), 32)


READ = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
from repshift_cli.profiling import digest
from repshift_cli.records import UsageError
try:
    digest.read(Path(sys.argv[1]), lambda share: None)
except UsageError as error:
    print(error)
"""


@pytest.mark.parametrize("inside", [b'{"traceEvents": [{"name": "', b"["])
def test_a_gzip_bomb_takes_no_memory(inside: bytes, tmp_path: Path) -> None:
    """Four GiB in four MiB: members of one gzip file stand one behind the other."""
    filling = b"[" if inside == b"[" else b"x"
    member = gzip.compress(filling * 2**24, 9)
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(inside) + member * 256)
    command = [sys.executable, "-c", READ, str(tmp_path / "bomb.json.gz")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert done.returncode == 0 and "bomb.json.gz" in done.stdout, done.stderr[-300:]
