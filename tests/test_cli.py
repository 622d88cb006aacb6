"""The command line: light help, exit codes, one line per error, the listings, completion."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from repshift_cli import __version__, cli, registry
from repshift_cli.cli import debug_first, run
from repshift_cli.commands.shared import completion, listing, options
from repshift_cli.records import Option, RepshiftError, UsageError
from repshift_cli.registry import Part
from repshift_cli.sweep import parsing

HEAVY = {"torch", "transformers", "timm", "torchvision", "pynvml"}
LISTINGS = ("models", "methods", "backends", "profiles", "doctor")


def repshift(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "repshift_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def raising(error: BaseException) -> Any:
    def app(*arguments: Any, **settings: Any) -> None:
        raise error

    return app


# --- light ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["bench", "--help"], ["profile", "--help"], ["--version"], ["profiles"]]
)
def test_no_heavy_import_for_what_needs_none(arguments: list[str]) -> None:
    code = (
        "import sys; from repshift_cli.cli import run\n"
        f"code = run({arguments!r}, False)\n"
        f"sys.exit(code or ' '.join({HEAVY!r} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_in_its_own_words_without_importing_any(capsys: pytest.CaptureFixture[str]) -> None:
    files = {f.stem for f in (Path(cli.__file__).parent / "commands").glob("*.py")} - {"__init__"}
    group: Any = typer.main.get_command(cli.app)
    assert set(cli.COMMANDS) == files
    for name, line in cli.COMMANDS.items():
        assert group.commands[name].help.startswith(line), name
    assert run(["--help"], False) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{name} {line}" in shown for name, line in cli.COMMANDS.items())
    code = (
        "import sys; from repshift_cli.cli import run\n"
        "run(['--help'], False)\n"
        "sys.exit(' '.join({'repshift_cli.commands.bench', 'repshift_cli.benchmark'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version() -> None:
    assert repshift("--version").stdout == f"repshift {__version__}\n"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("give a model"), 2, "error: give a model\n"),
        (RepshiftError("no luck"), 1, "error: no luck\n"),
        (
            ValueError("two\nlines"),
            1,
            "internal error: ValueError: two lines; run again with --debug for the traceback\n",
        ),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 1, ""),
        (SystemExit(5), 5, ""),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    assert run([], debug=False) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(("error", "code"), [(UsageError("give a model"), 2), (ValueError("boom"), 1)])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    monkeypatch.setattr(cli, "app", raising(error))
    assert run([], debug=True) == code
    shown = capsys.readouterr().err
    assert "Traceback" in shown and str(error) in shown


@pytest.mark.parametrize(
    ("arguments", "moved", "debug"),
    [
        (["bench", "--keep", "1", "--debug"], ["--debug", "bench", "--keep", "1"], True),
        (["--debug", "doctor", "--debug"], ["--debug", "doctor"], True),
        (["doctor"], ["doctor"], False),
        (["show", "--", "--debug"], ["show", "--", "--debug"], False),
    ],
)
def test_debug_may_stand_anywhere(arguments: list[str], moved: list[str], debug: bool) -> None:
    assert debug_first(arguments) == (moved, debug)


def test_debug_behind_the_command_works_in_the_program() -> None:
    assert "Traceback" not in repshift("profiles", "quik").stderr
    done = repshift("profiles", "quik", "--debug")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "--keep", "1.5"], "error: --keep: 1.5 is outside (0, 1]"),
        (["bench", "--batch", "0"], "error: --batch: 0 is too small"),
        (["bench", "--model", "vitb"], "error: unknown model 'vitb': did you mean vit_b"),
        (["bench", "--variant", "flsh"], "error: unknown attention back end 'flsh': did you mean flash"),
        (["bench", "--profile", "paper-diet"], "error: unknown profile 'paper-diet': did you mean paper-deit"),
        (["profiles", "absent.toml"], "error: cannot read the profile absent.toml"),
        (["bench", "--kep", "1"], "No such option: --kep"),
        (["bnch"], "No such command 'bnch'. Did you mean 'bench'"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(arguments: list[str], words: str) -> None:
    done = repshift(*arguments)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_a_reader_that_goes_away_is_met_quietly() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "repshift_cli", "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


# --- listings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command prints, run in this process at a width."""

    def show(*arguments: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run([*arguments], debug=False) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return show


@pytest.mark.parametrize("command", LISTINGS)
@pytest.mark.parametrize("columns", [60, 80])
def test_a_listing_fits_its_width(shown: Callable[..., str], command: str, columns: int) -> None:
    text = shown(command, columns=columns)
    assert len(text.splitlines()) >= 5
    assert max(len(line.rstrip()) for line in text.splitlines()) <= columns
    assert "\x1b" not in text


def test_models_lists_every_alias(shown: Callable[..., str]) -> None:
    words = shown("models").replace(",", " ").split()
    assert set(registry.aliases()) <= set(words)
    assert "hf:NAME" in words and "package.module:function" in words


def test_methods_lists_the_options(shown: Callable[..., str]) -> None:
    assert "takes --operation, --distance, --form" in shown("methods")


def test_backends_says_why_one_is_not_here(shown: Callable[..., str], no_gpu: pytest.MonkeyPatch) -> None:
    text = " ".join(shown("backends").split())
    assert "flash_attn3" in text and "not here: " in text
    assert "On this machine's cpu." in text


@pytest.mark.slow
def test_the_doctor_exits_0_as_a_program() -> None:
    done = repshift("doctor")
    assert (done.returncode, done.stderr) == (0, "")


def test_profiles_prints_a_file_as_it_is() -> None:
    path = Path(__file__).parent.parent / "profiles" / "quick.toml"
    assert repshift("profiles", "quick").stdout == path.read_text(encoding="utf-8")


def test_a_part_that_cannot_be_imported_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    module, reason = listing.loaded(Part("ghost", "reduction", "", "no_such_package.ghost"), "cpu")
    assert module is None
    assert reason is not None and "no_such_package" in reason
    listing.show_rows([("ghost", "a [bold]help[/bold]", reason)], "the end")
    shown = capsys.readouterr().out
    assert "a [bold]help[/bold]" in shown and "not here: " in shown


# --- completion -------------------------------------------------------------------------------------------------------


def test_names_complete() -> None:
    assert set(completion.model_names("deit_b")) == {"deit_b", "deit_b_distilled"}
    assert completion.model_names("vit_b,umt") == ["vit_b,umt_b", "vit_b,umt_l"]
    assert completion.variant_names("van") == ["vanilla"]
    assert completion.variant_names("vanilla,flash+ran") == ["vanilla,flash+random"]
    assert completion.profile_names("paper") == [
        "paper-deit",
        "paper-qa",
        "paper-resnet",
        "paper-retrieval",
        "paper-vim",
    ]


def test_a_methods_own_option_is_declared_once_and_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Option("power", "str", "Power.", "low", choices=("low", "high"))
    assert completion.values_of(own)("low,h") == ["low,high"]
    made = {"power": own, "steps": replace(own, name="steps"), "variant": replace(own, name="variant")}
    monkeypatch.setattr(parsing, "method_options", lambda: made)
    table = {name: options.of_a_method(option) for name, option in parsing.own_options().items()}
    monkeypatch.setattr(options, "OPTIONS", {"keep": options.Keep, **table})

    @options.sweep_options(only=("keep", "power", "steps"))
    def command(asked: options.Asked, steps: int = 5) -> None:
        """What a command has already keeps its meaning."""

    assert {"keep", "power", "steps"} <= inspect.signature(command).parameters.keys()
    assert inspect.signature(command).parameters["steps"].default == 5
    assert "variant" not in table


def test_the_shell_completes_without_torch() -> None:
    code = (
        "import sys; from repshift_cli.cli import app\n"
        "try: app([], prog_name='repshift')\n"
        "except SystemExit: pass\n"
        f"sys.exit(' '.join({HEAVY!r} & set(sys.modules)) or None)"
    )
    words = {"_REPSHIFT_COMPLETE": "complete_bash", "COMP_WORDS": "repshift bench --profile pap", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["paper-deit", "paper-qa", "paper-resnet", "paper-retrieval", "paper-vim"]
