"""The run file: whole or untouched, and one clear sentence for every kind of damage."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import jsonschema
import pytest
from synthetic import small_run, sweep_run

import repshift_cli
from repshift_cli.records import UsageError, store
from repshift_cli.records.json_codec import json_schema, to_plain

SCHEMA = Path(repshift_cli.__file__).parent / "records" / "run.schema.json"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = tmp_path / "run.json", small_run()
    store.create(path, run)
    before = path.read_bytes()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    for step in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, killed)
            with pytest.raises(KeyboardInterrupt):
                store.create(path, replace(run, records=()))
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_link_to_a_run_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    store.create(real, replace(small_run(), records=()))
    link.symlink_to(real)
    store.create(link, small_run())
    assert link.is_symlink() and store.load(real) == small_run()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        ('{"schema": 1, "machine": {"dev', "is not JSON, or was cut short"),
        ("", "is not JSON, or was cut short"),
        (b"\xff\xfe\x00", "is not a run file"),
        ("[" * 100_000, "is not a run file"),
        ("[1, 2]", "is JSON but no repshift run file"),
        ('{"benchmarks": []}', "is JSON but no repshift run file"),
        ('{"schema": 1, "machine": NaN, "records": []}', "it holds NaN"),
        ('{"schema": 99, "machine": {}, "records": []}', "has schema version 99 and this repshift reads up to 4"),
        ('{"schema": "1", "machine": {}, "records": []}', "is a damaged run file: run.options: missing"),
        (
            '{"schema": 1, "machine": {"device": 5, "device_name": "x"}, "options": {}, "records": []}',
            "is a damaged run file: run.machine.device: expected str, found int",
        ),
    ],
)
def test_load_says_in_one_sentence_what_is_wrong(tmp_path: Path, content: str | bytes | None, sentence: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        store.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and sentence in message and "\n" not in message
    assert caught.value.exit_code == 2


def test_a_folder_is_no_run_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        store.load(tmp_path)


def test_check_writable_tries_without_leaving_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.json"
    store.check_writable(path)
    assert list(path.parent.iterdir()) == []
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path, tmp_path / "file" / "run.json", Path("/proc/nowhere/run.json")):
        with pytest.raises(UsageError, match="cannot write"):
            store.check_writable(bad)


def test_default_path_names_time_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    now = datetime(2026, 11, 22, 5, 12, 0)
    path = store.default_path(now, ["vit_b"])
    assert path == Path("repshift-runs/20261122-051200-vit_b.json")
    store.create(path, small_run())
    assert store.default_path(now, ["vit_b"]).name == "20261122-051200-vit_b-2.json"
    assert store.default_path(now, ["hf:org/a b", "hf:org/a b"]).name == "20261122-051200-hf-org-a-b.json"
    assert store.default_path(now, list("abcde")).name == "20261122-051200-a+b+c+2.json"


def test_the_published_schema_is_the_generated_one() -> None:
    """After a change: repshift show --schema > repshift_cli/records/run.schema.json"""
    assert SCHEMA.read_text() == json.dumps(json_schema(), indent=2) + "\n"


def test_run_files_obey_the_published_schema(tmp_path: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for run in (small_run(), sweep_run()):
        store.create(tmp_path / "run.json", run)
        jsonschema.validate(json.loads((tmp_path / "run.json").read_text()), schema)
    wrong = to_plain(small_run())
    wrong["records"][0]["rounds"] = "many"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)
