"""`repshift doctor` says what is here and how to get what is not, whatever is broken."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from repshift_cli.cli import app
from repshift_cli.commands import doctor
from repshift_cli.commands.doctor import Check, checks
from repshift_cli.counters.base import permission
from repshift_cli.machine import device as devices


def check(name: str) -> Check:
    return next(c for c in checks() if c.name == name)


def test_the_doctor_reads_a_gpu(two_gpus: pytest.MonkeyPatch) -> None:
    assert check("GPU") == Check("GPU", True, "GPU 1111-aa, 80 GiB, sm_90, CUDA 13.0")
    assert check("driver") == Check("driver", True, "580.1")
    assert check("NVML").detail == "SM 1410 MHz, memory 2619 MHz, temperature 41 C, power 123 W"


def test_the_doctor_says_how_to_get_what_is_missing(no_gpu: pytest.MonkeyPatch) -> None:
    missing = [c for c in checks() if not c.ok]
    assert {"GPU", "driver", "NVML"} <= {c.name for c in missing}
    assert [c.name for c in missing if not c.remedy] == []


def test_the_doctor_survives_a_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("libfoo.so: cannot open\nshared object file")

    monkeypatch.setattr(devices, "import_torch", broken)
    assert check("torch").detail == "cannot be imported: libfoo.so: cannot open shared object file"
    assert check("GPU").ok is False


@pytest.mark.parametrize(
    ("text", "admin", "ok", "words"),
    [
        ("RmProfilingAdminOnly: 0\n", False, True, "open to every user"),
        ("A: 3\nRmProfilingAdminOnly: 1\n", False, False, "RmProfilingAdminOnly: 1"),
        ("RmProfilingAdminOnly: 1\n", True, True, "this process is one"),
        (None, False, None, "cannot be told"),
    ],
)
def test_the_counters_permission(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, admin: bool, ok: bool | None, words: str
) -> None:
    path = tmp_path / "params"
    if text:
        path.write_text(text)
    monkeypatch.setattr(permission, "NVIDIA_PARAMETERS", path)
    monkeypatch.setattr(permission, "is_admin", lambda: admin)
    found = doctor._check_counters()
    assert (found.ok, words in found.detail) == (ok, True)
    assert ok or found.remedy


def test_a_namespace_folder_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn-4 alone leaves a folder flash_attn without a module file: flash-attn 2 is not there then."""
    (tmp_path / "flash_attn" / "cute").mkdir(parents=True)
    (tmp_path / "flash_attn" / "cute" / "__init__.py").write_text("raise RuntimeError")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert (check("flash-attn 2").ok, check("flash-attn 4").ok) == (False, True)


@pytest.mark.parametrize("arguments", [[], ["--counters"]])
def test_the_doctor_tells_a_program(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["doctor", *arguments, "--json", "-"])
    assert done.exit_code == 0
    told = {c["name"]: c for c in json.loads(done.stdout)["checks"]}
    assert told["peak bandwidth" if arguments else "python"]["ok"] is not None
    assert {"name", "ok", "detail", "remedy"} == set(next(iter(told.values())))
