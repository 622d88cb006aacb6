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
from repshift_cli.records import Record, UsageError, store
from repshift_cli.records.json_codec import json_schema, to_plain

SCHEMA = Path(repshift_cli.__file__).parent / "records" / "run.schema.json"


def test_append_adds_replaces_and_keeps_the_order(tmp_path: Path) -> None:
    path, full = tmp_path / "deep" / "er" / "run.json", small_run()
    run = replace(full, records=())
    store.create(path, run)
    assert store.load(path) == run
    for record in full.records:
        run = store.append(path, run, record)
        assert store.load(path) == run
    assert run == full
    again = Record(full.records[3].case, "ok", rounds=1)
    run = store.append(path, run, again)
    assert run.records[3] == again and len(run.records) == len(full.records)
    assert store.load(path) == run
    assert [p.name for p in path.parent.iterdir()] == ["run.json"]


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_killed_on_the_way_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path, full = tmp_path / "run.json", small_run()
    run = replace(full, records=full.records[:1])
    store.create(path, run)
    before = path.read_bytes()

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, killed)
    with pytest.raises(KeyboardInterrupt):
        store.append(path, run, full.records[1])
    assert path.read_bytes() == before
    assert store.load(path) == run
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_link_to_a_run_file_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    store.create(real, small_run())
    link.symlink_to(real)
    store.append(link, small_run(), Record(small_run().planned[0], "failed", "again"))
    assert link.is_symlink()
    assert store.load(real).records[0].reason == "again"


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
