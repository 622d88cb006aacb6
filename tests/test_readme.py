"""The pages held against the program: their commands run in order, their options exist, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from generated import SECTIONS, WRITE, commands, parts, written_anew
from pages import PAGES, ROOT, Done, Page, in_a_process, run, sections

from repshift_cli import registry
from repshift_cli.models.inputs import more

README = PAGES["README.md"]
CONTRIBUTING = PAGES[".github/CONTRIBUTING.md"]
MAIN = "repshift bench --model vit_b --keep 0.6"
LONGEST_README = 200
OTHER_TOOLS = {"--no-deps", "--init", "--write", "--unshallow", "--logdir"}
OTHER_TOOLS |= {"--mutants", "--kills", "--gpus", "--durations"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")

everywhere = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


# --- what is run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run, beside the pages' own files and, once it has run, the README's run files."""
    place = tmp_path_factory.mktemp("pages")
    for page in PAGES.values():
        for name, text in page.files().items():
            (place / name).write_text(text, encoding="utf-8")
    return place


@pytest.fixture(scope="session")
def of_the_readme(folder: Path) -> list[Done]:
    return all_run(README, folder)


def all_run(page: Page, folder: Path) -> list[Done]:
    """Every command of a page, in its order; stops at the first that fails.

    Fidelity on 2 inputs does for that; that it is taken on 32 where they are cheap has tests of its own.
    """
    done = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(more, "INPUTS", 2)
        for command in page.commands():
            done.append(run(command, folder))
            assert done[-1].code == 0, f"{page.name}: {command}\n{done[-1].out}\n{done[-1].err}"
    return done


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES.values() if page.commands()], ids=lambda page: page.name)
def test_every_command_runs_in_order(page: Page, folder: Path, of_the_readme: list[Done]) -> None:
    done = of_the_readme if page is README else all_run(page, folder)
    printed = {line.rstrip() for one in done for line in one.out.splitlines()}
    for block in page.blocks("text exact"):
        missing = [line for line in block.splitlines() if line.rstrip() not in printed]
        assert not missing, f"{page.name} shows what no command of it prints: {missing}"


def test_the_tables_that_are_shown_stem_from_stored_runs() -> None:
    """Each line behind `$ repshift show profiles/...` stands in what that prints, to the digit, and in its order."""
    stored = [block for block in README.blocks("console") if block.startswith("$ repshift show profiles/")]
    assert stored, "the first table"
    for block in stored:
        command, _, shown = block.removeprefix("$ ").partition("\n")
        done = run(command, ROOT, columns=115)
        header, table, answer = shown.strip().split("\n\n")
        printed = [line.rstrip() for line in done.out.splitlines()]
        places = [printed.index(line.rstrip()) for line in [header, *table.splitlines()]]
        assert done.code == 0 and places == sorted(places) and len(places) > 4
        assert " ".join(answer.split()) in " ".join(done.out.split())
        assert not re.search(r"\bKL\b|cosine|top-1", shown) or "weights random" not in shown


@pytest.mark.slow
def test_the_main_command_prints_its_three_variants(tmp_path: Path) -> None:
    assert README.text.count(MAIN) >= 2
    done = in_a_process(f"{MAIN} --budget 1", tmp_path, columns=160)
    assert done.code == 0, done.err
    assert "197 → 119" in done.out
    for variant in ("vanilla", "flash", "flash+repshift"):
        assert re.search(rf"^{re.escape(variant)} ", done.out, flags=re.MULTILINE)


@pytest.mark.slow
def test_pip_takes_the_address_of_a_repository(tmp_path: Path) -> None:
    assert "'repshift @ git+ADDRESS'" in README.text
    install = ["pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", "here"]
    done = subprocess.run(
        [sys.executable, "-m", *install, f"repshift @ git+file://localhost{ROOT}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "here")}
    script = [sys.executable, str(tmp_path / "here" / "bin" / "repshift"), "profiles"]
    shown = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "paper-deit" in shown.stdout, shown.stderr


@pytest.mark.slow
def test_the_method_of_the_contributors_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (name, text), *_ = CONTRIBUTING.files().items()
    (tmp_path / name).write_text(text, encoding="utf-8")
    info = tmp_path / "longest-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: longest\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[repshift.reduction]\nlongest = longest\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.parts.cache_clear()
    try:
        listed, measured = [run(c, tmp_path) for c in CONTRIBUTING.shown() if c.startswith("repshift")]
    finally:
        registry.parts.cache_clear()
    assert "Keeps the longest tokens" in " ".join(listed.out.split())
    assert measured.code == 0, measured.err
    assert re.search(r"^flash\+longest .* 17 → 9 ", measured.out, flags=re.MULTILINE)


# --- what is written --------------------------------------------------------------------------------------------------


@everywhere
def test_generated_parts_are_what_the_program_gives(page: Page) -> None:
    assert set(parts(page)) <= set(SECTIONS)
    assert written_anew(page) == page.text, f"{page.name} is not up to date: run `{WRITE}`"


def test_every_generated_part_has_its_place() -> None:
    assert {name for page in PAGES.values() for name in parts(page)} == set(SECTIONS)


@everywhere
def test_the_options_that_are_named_exist(page: Page) -> None:
    known = {name: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} for name, command in OF.items()}
    for line in [*page.commands(), *page.commands_on_real_input(), *page.shown(), *inline(page)]:
        words = shlex.split(line.replace("'", "")) if line.startswith("repshift ") else []
        if words[1:] and words[1] in known:
            given = {word for word in words[2:] if OPTION.fullmatch(word)}
            assert given <= known[words[1]] | {"--help", "--debug"}, f"{page.name}: {line}"
    examples = {f"--{name}" for block in page.blocks("python") for name in re.findall(r'"([a-z-]+)":', block)}
    everything = set().union(*known.values(), examples, OTHER_TOOLS, {"--help", "--debug", "--install-completion"})
    named = {option for code in inline(page) if code.startswith("--") for option in OPTION.findall(code)}
    assert named <= everything, f"{page.name} names {named - everything}"


OF = commands()


def inline(page: Page) -> list[str]:
    """The code within the sentences; what this project was like before is not held against it."""
    prose = "" if page.name == "CHANGELOG.md" else page.prose
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


@everywhere
def test_every_link_leads_somewhere(page: Page) -> None:
    prose = re.sub(r"`[^`]*`", "", page.prose)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.is_relative_to(ROOT) and target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in sections(PAGES[target.relative_to(ROOT).as_posix()]), f"{page.name} links to {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    found, new = set(), {"README.md"}
    while new:
        found |= new
        links = [(PAGES[name], link) for name in new for link in re.findall(r"\]\(([^)#\s]+)", PAGES[name].prose)]
        targets = [(page.path.parent / link).resolve() for page, link in links if "://" not in link]
        new = {t.relative_to(ROOT).as_posix() for t in targets if t.suffix == ".md"} - found
    assert found == set(PAGES)


def test_nobody_is_sent_to_a_registry_for_this_package() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "repshift_cli").rglob("*.py")]
    wrong = re.compile(r"pip install '?repshift(?!(?:\[\w+\])? @)|OWNER/")
    assert not [found for text in (*sources, *(page.text for page in PAGES.values())) for found in wrong.findall(text)]


def test_the_readme_stays_short() -> None:
    assert len(README.text.splitlines()) <= LONGEST_README


ROOMS = {
    **{
        f"repshift_cli/{room}": [*registry.parts(room)]
        for room in ("attention", "reduction", "models", "operators", "renderers", "inspection")
    },
    "repshift_cli/evaluation": [*registry.parts("evaluation.tasks"), *registry.parts("evaluation.datasets")],
    "repshift_cli/counters": [f.stem for f in (ROOT / "repshift_cli" / "counters").glob("[!_]*.py")],
    "repshift_cli/commands": [*OF],
    "profiles": [f.stem for f in (ROOT / "profiles").glob("*.toml")],
    "profiles/baselines": [f"cpu/{f.name}" for f in (ROOT / "profiles" / "baselines" / "cpu").glob("*.json")],
}


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_page_names_what_is_in_it(room: str) -> None:
    missing = [name for name in ROOMS[room] if f"`{name}" not in PAGES[f"{room}/README.md"].text]
    assert ROOMS[room] and not missing, f"say in {room}/README.md what these are: {', '.join(missing)}"


def test_the_house_names_every_room() -> None:
    rooms = [f.parent.name for f in (ROOT / "repshift_cli").glob("*/__init__.py")]
    text = PAGES["repshift_cli/README.md"].text
    assert rooms and not [room for room in rooms if f"`{room}/`" not in text]


def test_ci_does_what_the_readme_says() -> None:
    (line,) = re.findall(r"^    (pip install -e .*)$", README.text, flags=re.MULTILINE)
    install, tests = line.split(" && ")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert any(re.sub(r" --\S+", "", step) == install for step in ci)
    assert any(step.startswith(tests) for step in ci)
