"""`repshift show`: which output goes where, and what is refused before anything is written."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import typer
from synthetic import small_run
from typer.testing import CliRunner

from repshift_cli.commands.shared.output import Outputs, rendered, with_stdout
from repshift_cli.commands.show import show
from repshift_cli.records import SCHEMA_VERSION, UsageError, store
from repshift_cli.records.json_codec import json_schema
from repshift_cli.renderers import document_of

app = typer.Typer()
app.command()(show)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    store.create(path, small_run())
    return path


def output(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception:
        raise result.exception
    return result.stdout


def test_the_table_by_default(run_file: Path) -> None:
    text = output(run_file)
    assert text.startswith("vit_b · ") and "flash+repshift" in text and "\x1b" not in text


def test_json_on_stdout_is_the_run_file_and_nothing_else(run_file: Path) -> None:
    assert output(run_file, "--json", "-") == run_file.read_text(encoding="utf-8")


def test_csv_and_markdown_on_stdout_stand_alone(run_file: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(output(run_file, "--csv", "-"))))
    assert [row["variant"] for row in rows][:2] == ["vanilla", "flash"]
    assert output(run_file, "--markdown", "-").startswith("**vit\\_b")


def test_files_are_written_beside_the_table(run_file: Path, tmp_path: Path) -> None:
    csv_file, markdown_file = tmp_path / "a" / "t.csv", tmp_path / "t.md"
    text = output(run_file, "--csv", csv_file, "--markdown", markdown_file, "--json", "/dev/null")
    assert text == output(run_file)
    assert csv_file.read_text() == output(run_file, "--csv", "-")
    assert markdown_file.read_text() == output(run_file, "--markdown", "-")


def test_a_file_and_stdout_at_once(run_file: Path, tmp_path: Path) -> None:
    text = output(run_file, "--csv", tmp_path / "t.csv", "--json", "-")
    assert json.loads(text)["schema"] == SCHEMA_VERSION and (tmp_path / "t.csv").exists()


def test_two_outputs_to_one_place_are_refused(run_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--csv and --json both write to stdout"):
        output(run_file, "--json", "-", "--csv", "-")
    with pytest.raises(UsageError, match=r"--json and --markdown both write to "):
        output(run_file, "--json", tmp_path / "same", "--markdown", tmp_path / "same")


def test_an_unwritable_target_is_refused_before_anything_is_written(run_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        output(run_file, "--csv", tmp_path / "t.csv", "--json", tmp_path)
    assert not (tmp_path / "t.csv").exists()
    Outputs({"csv": "-", "markdown": str(tmp_path / "t.md")}).check()
    assert not (tmp_path / "t.md").exists()


def test_another_format_never_takes_the_place_of_a_run_file(run_file: Path) -> None:
    before = run_file.read_bytes()
    with pytest.raises(UsageError, match=r"--csv would write over .*run\.json, which is JSON"):
        output(run_file, "--csv", run_file)
    assert run_file.read_bytes() == before


def test_a_document_that_a_format_does_not_take_is_refused_before_anything_is_written() -> None:
    with pytest.raises(UsageError, match=r"--junit takes no run, but gate; leave it out"):
        rendered("junit", document_of(small_run()))


def test_an_output_without_a_file_is_stdout(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from repshift_cli import cli

    assert cli.run(["show", str(run_file), "--csv"], False) == 0
    assert capsys.readouterr().out == output(run_file, "--csv", "-")
    assert with_stdout(["a", "--csv", "--only", "--json", "-", "--markdown"], {"--csv", "--json", "--markdown"}) == [
        *("a", "--csv", "-", "--only", "--json", "-", "--markdown", "-")
    ]


def test_a_terminal_without_unicode_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    Outputs().emit(document_of(small_run()))
    assert b"(1.346?1.352)" in raw.getvalue()


def test_a_column_that_nobody_knows_is_named(run_file: Path) -> None:
    assert output(run_file, "--columns", "latency, cosine").startswith("vit_b")
    for options, words in (
        (("--columns", "latncy"), "no column is called 'latncy'; did you mean latency"),
        (("--columns", "kl", "--wide"), "--wide and --columns ask for different things"),
        (("--quiet", "--verbose"), "--quiet and --verbose ask for different things"),
    ):
        with pytest.raises(UsageError, match=re.escape(words)):
            output(run_file, *options)


def test_without_a_run_it_says_what_to_name() -> None:
    with pytest.raises(UsageError, match="name a run file"):
        output()


def test_the_schema_needs_no_run() -> None:
    assert json.loads(output("--schema")) == json_schema()
