"""Text from models and files stays text in every output: one table of strings, over every format and every command."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from synthetic import CPU, small_run
from test_chrome_trace import two_variants

from repshift_cli import cli, registry
from repshift_cli.analysis.comparison import WORSE, Finding, Lonely
from repshift_cli.analysis.stats import Estimate
from repshift_cli.commands.shared import dry_run, gating
from repshift_cli.commands.shared.output import Outputs, rendered
from repshift_cli.gate.verdict import FAIL, INCONCLUSIVE, Outcome
from repshift_cli.profiling import digest
from repshift_cli.records import Case, Run, store, visible
from repshift_cli.records.inspection import Answer, Axis, Inspection, Quantity
from repshift_cli.records.json_codec import from_plain, to_json, to_plain
from repshift_cli.records.profile import KernelTime, OpTime, PartTime, ProfileRun
from repshift_cli.renderers import Document, document_of, table, takes
from repshift_cli.renderers.sheets import answer, explain, traffic
from repshift_cli.renderers.sheets import gate as gate_sheets
from repshift_cli.sweep.plan import Planned

HOSTILE = {
    "rich markup": "[bold red]x[/bold red] [/] [link=https://e.x]y[/link]",
    "ansi": "a\x1b[31mred\x1b[0m\x1b[2J",
    "osc": "\x1b]8;;https://e.x\x07click\x1b]8;;\x07\x1b]0;title\x07",
    "c1": "\x9b31mred\x9d0;title\x9c",
    "nul and bell": "a\x00b\x07c\x08\x7f",
    "lines": "a\nb\r\nc\rd\x0be\x0cf\x85g\u2028h\u2029i",
    "bidi": "\u202egnp.exe\u202c \u2066x\u2069 \u200fy\u061cz",
    "surrogate": "a\ud800b\udfff",
    "no xml": "a\ufffeb\uffffc ]]> <!-- --> <![CDATA[",
    "pipes": "a | b || c \\| d",
    "backticks": "`code` ```block``` ~~~",
    "image": "![](https://e.x/y.png) ![a][b]",
    "links": "[a](javascript:x) <https://e.x> https://e.x/y www.e.x a@e.x [b]: https://e.x",
    "mention": "@team @org/team (@me)",
    "issue": "#123 org/repo#4 GH-5",
    "emphasis": "**a** __b__ *c* _d_ ~~e~~ $x$ $$y$$",
    "heading": "# a\n## b\n===\n---",
    "list": "- a\n1. b\n+ c\n> d",
    "entity": "&lt;b&gt; &#64;team &amp; &copy;",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>'\"",
    "command": "::error::no",
    "command with properties": "::error file=a,line=1::no",
    "command behind a line": "a\n::set-output name=x::y\n  ::warning::z",
    "old command": "##[error]no a##[add-mask]b",
    "encoded": "100%0A::error::x %25 %0D %3A %2C a:b,c",
    "formula": '=HYPERLINK("https://e.x","y")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3",
    "at": "@SUM(1+1)",
    "tab": "\t=1+1",
    "return": "\r=1+1",
    "a comma, a quote": 'a,"b",c',
    "long": "x" * 3000,
    "tag": "</testcase></testsuite>&bad;",
}
TEXTS = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)

STEERING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
    r"|^[ \t]*::[A-Za-z-]+(?: [^\n]*)?::|##\[",
    re.MULTILINE,
)
"""What a terminal obeys, and what GitHub's runner takes for a command (its ActionCommand.cs: `::` first in a line,
`##[` anywhere)."""


def check_harmless(out: str) -> None:
    found = STEERING.search(out)
    assert found is None, f"{out[max(0, found.start() - 40) : found.end() + 40]!r}"


def flat(text: str) -> str:
    """As a reader sees it on one line, what was made visible included."""
    return visible(" ".join(text.split()))


def unescaped(text: str) -> str:
    """The text without what keeps it from being a command to GitHub's runner."""
    return text.replace(r"\::", "::").replace(r"#\#[", "##[")


def hostile_run(text: str) -> Run:
    """A run whose every text is the string: models, reasons, warnings, kernels, options, labels, the machine."""

    def told(case: Case) -> Case:
        own: dict[str, Any] = {"form": text, text: text} if case.layers else {}
        return replace(case.with_options(**own), model=text, input=text, protect=text)

    run = small_run()
    records = tuple(
        replace(
            r,
            case=told(r.case),
            reason=r.reason and text,
            kernel=text,
            warnings=(text,),
            stopped_by=text,
            measurements=tuple(
                replace(m, reason=m.reason and text, label=f"{m.label}{text}", provider=text, parts={text: {text: 1.0}})
                for m in r.measurements
            ),
        )
        for r in run.records
    )
    more = replace(records[0].measurements[5], metric=text, source=text, unit=text)
    records = (replace(records[0], measurements=(*records[0].measurements, more)), *records[1:])
    machine = replace(
        CPU, device_name=text, cpu=text, commit=f"c{text}", python=text, system=text, packages={"torch": text}
    )
    return replace(run, machine=machine, planned=tuple(map(told, run.planned)), records=records, warnings=(text,))


def hostile_outcome(text: str) -> Outcome:
    case = replace(hostile_run(text).planned[2], attention=text)
    slower = Finding(
        case, text, text, text, "lower", False, 1.0, 1.2, Estimate(1.2, 1.1, 1.3), WORSE, 0.01, FAIL, 9, text
    )
    unclear = replace(slower, verdict=INCONCLUSIVE, case=replace(case, keep=0.5))
    broken = Lonely(replace(case, keep=0.4), "base", "failed", text)
    return Outcome(text, text, (slower, unclear), (broken,), (text,), 9)


def hostile_profile(text: str, tmp_path: Path) -> ProfileRun:
    two_variants(tmp_path)
    run = digest.read(tmp_path / "0.json", lambda _: None)
    breakdowns = tuple(
        replace(
            b,
            name=text,
            case=hostile_run(text).planned[2],
            kernel=text,
            parts=(*b.parts, PartTime(text, 1, 1.0)),
            kernels=(KernelTime(text, 1, 1.0),),
            ops=(OpTime(text, 1, 1.0),),
            warnings=(text,),
            missing={"device_ms": text},
        )
        for b in run.breakdowns
    )
    return replace(run, breakdowns=breakdowns, warnings=(text,))


def documents(text: str, tmp_path: Path) -> list[Document]:
    profile = hostile_profile(text, tmp_path)
    views = [replace(profile, options=profile.options | {"by": by, "diff": True}) for by in ("part", "kernel", "op")]
    run = hostile_run(text)
    axis, seen = Axis(text, (text,)), Answer(text, text, reason=text, reading=(text,))
    array = Quantity(text, text, text, text, (axis, replace(axis, name=f"{text}2")), (-1.0,), words={"-1": text})
    answers = (replace(seen, quantities=(array, replace(array, view="map"))), replace(seen, status="failed"))
    inspection = Inspection(run.machine, {}, run.planned[2], 16, 4, answers, (text,))
    gated = gate_sheets.document_of(hostile_outcome(text))
    return [document_of(run), gated, *map(document_of, views), document_of(inspection)]


@TEXTS
def test_no_format_lets_text_steer_whoever_shows_it(text: str, tmp_path: Path) -> None:
    found = 0
    for document in documents(text, tmp_path):
        for name, part in registry.parts("renderers").items():
            if takes(part.constants["TAKES"], document.kind, document.lay_out is not None):
                check_harmless(rendered(name, document))
                found += 1
    assert found > 20


# --- tables -----------------------------------------------------------------------------------------------------------


@TEXTS
@pytest.mark.parametrize("width", [60, 4000])
def test_a_table_on_a_terminal_shows_it_as_text(text: str, width: int, tmp_path: Path) -> None:
    for document in documents(text, tmp_path):
        out = io.StringIO()
        console = Console(file=out, width=width, force_terminal=True, color_system=None, highlight=False, markup=False)
        table.render(document, out, console)
        check_harmless(out.getvalue())
        if width > len(text):
            assert any(flat(text) in unescaped(line) for line in out.getvalue().splitlines())


@TEXTS
def test_what_is_printed_apart_from_documents(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = hostile_run(text)
    console = table.console_for(out := io.StringIO())
    traffic.render(run, console)
    found: dict[str, Any] = dict.fromkeys(("model", "class", "blocks", "default"), text)
    found |= {"warnings": [text], "depth": 1, "branches": {"mlp": text}, "operations": [text], "attention": True}
    found |= {"entering": 1, "free": 1, "protected": {text: text}, "companions": [text], "readers": [text]}
    explain.render(found | {"schedules": []}, out)
    explain.render_refused(text, [(text, text)], out)
    dry_run.show_cases((Planned(run.planned[2], (1, 1)), Planned(run.planned[2], refused=text)))
    check_harmless(out.getvalue() + capsys.readouterr().out)


@TEXTS
def test_the_lines_to_copy_call_prune_and_nothing_else(text: str) -> None:
    case = hostile_run(text).planned[2]
    code = answer.code_of(replace(case, pruning=text).with_options(**{"form": text, text: 1, f"x=1); {text}": 1}))
    assert "\x1b" not in code and "\n```" not in code
    imported, pruned = ast.parse(code).body
    assert ast.unparse(imported) == "from repshift_cli import prune" and isinstance(pruned, ast.Assign)
    assert isinstance(pruned.value, ast.Call) and ast.unparse(pruned.value.func) == "prune"
    given = {k.arg: ast.literal_eval(k.value) for k in pruned.value.keywords if k.arg != "inputs"}
    assert given["method"] == given["form"] == text


# --- CSV --------------------------------------------------------------------------------------------------------------


@TEXTS
def test_csv_has_no_formula_and_numbers_stay_numbers(text: str, tmp_path: Path) -> None:
    for document in [document_of(hostile_run(text)), document_of(hostile_profile(text, tmp_path))]:
        lines = rendered("csv", document).split("\n")
        rows = list(csv.reader(lines[:-1]))
        assert len(rows) == len(lines) - 1 and len({len(row) for row in rows}) == 1
        for cell in (cell for row in rows for cell in row):
            assert not cell.startswith(("=", "+", "@", "\t", "\r", "-")), cell
        numbers = [row[rows[0].index("latency_ms")] for row in rows[1:4]] if document.kind == "run" else []
        assert all(float(cell) > 100 for cell in numbers[:3])


# --- Markdown ---------------------------------------------------------------------------------------------------------


def tokens(tree: list[Token]) -> Iterator[Token]:
    for token in tree:
        yield token
        yield from tokens(token.children or [])


OURS = {
    *("heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text", "strong_open"),
    *("strong_close", "table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close", "tr_open"),
    *("tr_close", "th_open", "th_close", "td_open", "td_close", "bullet_list_open", "bullet_list_close"),
    *("list_item_open", "list_item_close", "text_special", "fence"),
}
CHART = "text"
"""What the fence of a gate's bars is marked with: whatever stands in it is shown as it is."""
LINKS = re.compile(r"@\w|(?<!\w)#\d|GH-\d|https?://|www\.", re.IGNORECASE)


@TEXTS
def test_markdown_shows_it_as_text(text: str, tmp_path: Path) -> None:
    for document in documents(text, tmp_path):
        tree = MarkdownIt("gfm-like", {"linkify": False}).parse(rendered("markdown", document))
        every = list(tokens(tree))
        assert {t.type for t in every} <= OURS, {t.type for t in every} - OURS
        assert all(t.level <= 4 for t in every if t.type.startswith("bullet")), "no list within a list"
        assert len([t for t in every if t.type == "bullet_list_open"]) <= len(document.sheets)
        fenced = [t.content.strip() for t in every if t.type == "fence" and t.info != CHART]
        assert fenced == [sheet.code for sheet in document.sheets if sheet.code]
        assert sum(t.info == CHART for t in every) == (document.kind == "gate")
        assert sum(t.type == "heading_open" for t in every) == bool(document.title)
        said = [t.content for t in every if t.type == "inline"]
        texts = ["".join(c.content for c in t.children or [] if c.type.startswith("text")) for t in every if t.children]
        assert said and not any(LINKS.search(t) for t in texts), [t for t in texts if LINKS.search(t)]
    plain = [unescaped(t.replace("\u200b", "")) for t in texts]
    assert any(flat(text) in t for t in plain), plain[-3:]


# --- HTML ---


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[tuple[str, ...]] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add((tag, *(name for name, value in attrs)))
        assert not any(name.startswith("on") or (value or "").startswith("javascript:") for name, value in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Tags]:
    return [Tags(rendered("html", d)) for d in documents("plain", tmp_path_factory.mktemp("plain"))[:-1]]


@TEXTS
def test_a_page_shows_it_as_text(text: str, plain: list[Tags], tmp_path: Path) -> None:
    for document, as_plain in zip(documents(text, tmp_path)[:-1], plain, strict=True):
        page = Tags(rendered("html", document))
        assert page.tags <= as_plain.tags
        assert flat(text) in " ".join(unescaped(page.text).split())


# --- JUnit ------------------------------------------------------------------------------------------------------------


@TEXTS
def test_junit_is_well_formed_and_says_it(text: str) -> None:
    outcome = hostile_outcome(text)
    suites = ET.fromstring(rendered("junit", gate_sheets.document_of(outcome)))
    tests = suites.findall("testsuite/testcase")
    assert len(tests) == 3 and [len(test) for test in tests] == [1, 1, 1]
    message = tests[-1][0].get("message") or ""
    assert unescaped(message) == flat(text)


# --- JSON -------------------------------------------------------------------------------------------------------------


@TEXTS
def test_json_says_the_same_to_whoever_parses(text: str, tmp_path: Path) -> None:
    run = hostile_run(text)
    assert json.loads(to_json(run)) == to_plain(run)
    assert json.loads(rendered("json", document_of(run))) == to_plain(run)
    for name in ("bencher", "github_action_benchmark"):
        assert json.loads(rendered(name, document_of(run)))
    store.create(tmp_path / "run.json", run)
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == to_plain(run), "a lone surrogate too is kept"
    assert from_plain(Run, json.loads(to_json(run))).records[0].warnings == (visible(text),)


def test_the_results_of_asv_stay_in_their_folder(tmp_path: Path) -> None:
    for text in ("../../../x", "..", "/etc/x", "a/../../b", *HOSTILE.values()):
        files = registry.load(registry.find("renderers", "asv")).files(document_of(hostile_run(text)))
        for path in files:
            assert (tmp_path / path).resolve().parent in (tmp_path, tmp_path / path.split("/")[0]), path
            assert ".." not in path.split("/") and not STEERING.search(path)


# --- GitHub -----------------------------------------------------------------------------------------------------------


def as_the_runner_reads(line: str) -> tuple[str, dict[str, str], str]:
    """Command, properties and data of a line, by actions/runner's ActionCommand.TryParseV2."""
    assert line.startswith("::")
    head, _, data = line[2:].partition("::")
    command, _, properties = head.partition(" ")
    pairs = dict(p.split("=", 1) for p in properties.split(",") if p)

    def decoded(value: str, signs: dict[str, str]) -> str:
        for code, sign in signs.items():
            value = value.replace(code, sign)
        return value

    of_data = {"%0D": "\r", "%0A": "\n", "%25": "%"}
    of_properties = {"%0D": "\r", "%0A": "\n", "%3A": ":", "%2C": ",", "%25": "%"}
    return command, {k: decoded(v, of_properties) for k, v in pairs.items()}, decoded(data, of_data)


@TEXTS
def test_annotations_are_one_line_each_and_say_it(text: str) -> None:
    lines = gate_sheets.workflow_commands(hostile_outcome(text))
    found = [as_the_runner_reads(line) for line in lines]
    assert [command for command, *_ in found] == ["error", "warning", "error"]
    assert all(set(properties) == {"title"} for _, properties, _ in found)
    for line in lines:
        check_harmless(line.partition(" title")[2])
        assert "\n" not in line and "\r" not in line
    assert unescaped(found[-1][2]).endswith(f"no longer runs: {visible(text)}")


@TEXTS
def test_the_gate_prints_nothing_that_the_runner_obeys(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = gating.Asked(text, None, (None, None), None, Path(), True, True, Outputs())
    gating._show(hostile_outcome(text), asked)
    out = capsys.readouterr().out.splitlines()
    ours = [line for line in out if line.startswith("::")]
    assert ours == gate_sheets.workflow_commands(hostile_outcome(text))
    check_harmless("\n".join(line for line in out if line not in ours))


# --- the commands -----------------------------------------------------------------------------------------------------

COMMANDS = [
    "show RUN",
    "show RUN --traffic",
    "show RUN --csv -",
    "show RUN --json -",
    "show RUN --markdown -",
    "compare RUN OTHER --all",
    "compare RUN OTHER --json -",
    "compare RUN OTHER --metric nothing",
    "compare RUN OTHER --markdown -",
    "history RUN OTHER",
    "history RUN --markdown -",
    "history RUN --csv -",
    "export RUN --format bencher",
    "export RUN --format github-action-benchmark",
    "export RUN --format asv",
    "show PROFILE",
    "show PROFILE --by kernel --diff",
    "show PROFILE --csv -",
    "show PROFILE --markdown -",
    "profile --read TRACE",
    "profile --read TRACE --by op",
    "profile --read TRACE --csv -",
    "profile --read TRACE --markdown -",
    "profile --read TRACE --json -",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run, a profile and a trace whose texts are all of the strings, one behind the other."""
    folder = tmp_path_factory.mktemp("hostile")
    text = " ".join(HOSTILE.values()) + "\n::error::last"
    store.create(folder / "run.json", hostile_run(text))
    store.create(folder / "other.json", replace(hostile_run(text), created="2026-11-23T05:12:00+00:00"))
    store.write_text(folder / "profile.json", to_json(hostile_profile(text, folder)))
    trace = json.loads((folder / "0.json").read_text("utf-8"))
    for event in trace["traceEvents"]:
        event["name"] = f"{event.get('name')}{text}"
    (folder / "trace.json").write_text(json.dumps(trace))
    names = {"RUN": "run.json", "OTHER": "other.json", "PROFILE": "profile.json", "TRACE": "trace.json"}
    return {word: str(folder / name) for word, name in names.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_lets_a_file_steer_the_terminal(
    command: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.run([files.get(word, word) for word in command.split()], False)
    out, said = capsys.readouterr()
    assert code == (2 if "nothing" in command or "history RUN --csv" in command else 0), said
    check_harmless(out)
    check_harmless(said)
