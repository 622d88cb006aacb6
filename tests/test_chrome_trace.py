"""Traces: read piece by piece whatever their shape, refused in one sentence, written whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_trace
import pytest
from synthetic import CUDA, ON_CUDA, REPSHIFT

from repshift_cli.profiling import chrome_trace, digest
from repshift_cli.profiling.chrome_trace import Recorded, Trace
from repshift_cli.records import UsageError
from repshift_cli.records.profile import Breakdown, ProfileRun

FLASH = replace(ON_CUDA, attention="flash")
PRUNED = replace(FLASH, **REPSHIFT | {"layers": (1,)})


def stored(path: Path, plain: Any) -> Path:
    text = json.dumps(plain)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def two_variants(folder: Path) -> tuple[ProfileRun, list[Recorded]]:
    """Two made-up variants, read from files as torch would have exported them."""
    found = []
    for number, case in enumerate((FLASH, PRUNED)):
        path = stored(folder / f"{number}.json", cuda_trace.trace(steps=2, pruned=bool(case.layers)))
        tokens = (197, 119) if case.layers else (197,)
        found.append(digest.digest(Breakdown(case.variant, case, tokens=tokens, kernel="flash_fwd ×2"), path))
    run = ProfileRun(CUDA, {"by": "part"}, tuple(b for b, _ in found), created="2026-11-22", tool="repshift 0.1.0")
    return run, [r for _, r in found]


# --- reading ----------------------------------------------------------------------------------------------------------

EVENTS = [
    {"ph": "X", "name": f'a "quoted" näme {i} \\ }}]', "ts": i, "args": {"list": [1, {"x": []}]}} for i in range(40)
]


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1 << 20])
def test_events_come_whole_whatever_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(chrome_trace, "_CHUNK", piece)
    path = stored(tmp_path / "t.json", {"a": 12345, "traceEvents": EVENTS, "deviceProperties": [{"id": 0}], "z": None})
    trace = Trace(path)
    assert list(trace) == EVENTS == list(trace)
    assert trace.header == {"deviceProperties": [{"id": 0}]}


@pytest.mark.parametrize("name", ["t.json", "t.json.gz", "named-wrongly.gz"])
def test_plain_and_gzip_are_told_by_content(tmp_path: Path, name: str) -> None:
    path = stored(tmp_path / name, {"traceEvents": EVENTS})
    if name.startswith("named"):
        path.write_text(json.dumps(EVENTS))
    assert list(Trace(path)) == EVENTS


def test_a_bare_list_no_events_and_spaces(tmp_path: Path) -> None:
    assert list(Trace(stored(tmp_path / "a.json", EVENTS))) == EVENTS
    assert list(Trace(stored(tmp_path / "b.json", {"traceEvents": []}))) == []
    (tmp_path / "c.json").write_text('\n {\t"x" : { } ,\n "traceEvents" : [ {} , {"a": 1}\n] }\n')
    assert list(Trace(tmp_path / "c.json")) == [{}, {"a": 1}]


def test_what_kineto_writes_that_is_no_strict_json(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"traceEvents": [{"name": "tab\there", "args": {"bw": NaN}}]}')
    assert list(Trace(tmp_path / "t.json")) == [{"name": "tab\there", "args": {"bw": None}}]


def test_the_share_read_rises_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chrome_trace, "_CHUNK", 100_000)
    seen: list[float] = []
    list(Trace(stored(tmp_path / "t.json", {"traceEvents": EVENTS * 100}), seen.append))
    assert seen == sorted(seen) and len(set(seen)) > 2 and seen[-1] == 1.0


WHOLE = json.dumps({"schemaVersion": 1, "traceEvents": cuda_trace.trace()["traceEvents"]})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "is no trace: it is not JSON"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is no trace: it is not text"),
        (b'"text"', "is no trace: it is not JSON"),
        (b'{"schema": 1, "records": []}', "is JSON but no Chrome trace (it has no traceEvents)"),
        (b'{"traceEvents": {"a": 1}}', "its traceEvents is no list"),
        (b'{"traceEvents": [1, 2]}', "is no whole trace: damaged or cut short near character"),
        (b'{"traceEvents": []}', "is a Chrome trace without any operator or kernel of torch's profiler"),
        (b"[]", "is a Chrome trace without any operator"),
        (b'[{"ph": "X", "cat": "v8", "name": "gc", "ts": 1, "dur": 2}]', "is a Chrome trace without any operator"),
        (WHOLE[: len(WHOLE) // 2].encode(), "is no whole trace: damaged or cut short near character"),
        (WHOLE[:-1].encode(), "is no whole trace: damaged or cut short near character"),
        (WHOLE.replace('"cat"', '"cat', 1).encode(), "is no whole trace: damaged or cut short near character"),
        (b"[" * 100_000, "is no"),
        (gzip.compress(WHOLE.encode())[:-20], "is a damaged gzip file, or was cut short"),
        (gzip.compress(WHOLE.encode())[:200], "is a damaged gzip file, or was cut short"),
        (b"\x1f\x8bnot gzip at all", "is a damaged gzip file, or was cut short"),
        (b'{"repshift": {"kind": "profile", "schema": 99}, "traceEvents": [{}]}', "was written by a newer repshift"),
        (b'{"repshift": {"kind": "profile"}, "traceEvents": [{}]}', "is a damaged trace of repshift: repshift.machine"),
    ],
)
def test_what_is_no_trace_gets_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        digest.read(path)
    assert str(caught.value).startswith(f"{path} ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        digest.read(tmp_path / "absent.json")
    with pytest.raises(UsageError, match="cannot be read: it is a folder"):
        digest.read(tmp_path)


PEAK = """
import sys
from pathlib import Path
from repshift_cli.profiling import digest

found = digest.read(Path(sys.argv[1])).breakdowns[0]
status = Path("/proc/self/status").read_text()
print(found.kernel_count, next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_a_large_trace_is_read_within_four_times_its_size(tmp_path: Path) -> None:
    path, steps = tmp_path / "large.json", 11_500
    with path.open("w") as out:
        out.write('{"traceEvents": [\n')
        for number in range(1, steps + 1):
            writer = cuda_trace.Writer()
            cuda_trace.step(writer, number, pruned=True)
            out.write(",\n".join(json.dumps(e) for e in writer.events[4:]))
            out.write(",\n" if number < steps else "\n]}")
    size = path.stat().st_size
    assert size > 100e6
    done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
    kernels, peak = done.stdout.split()
    assert float(kernels) == 11
    assert int(peak) * 1024 < 4 * size


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out.json", "out.json.gz"])
def test_our_trace_gives_the_same_tables_again(tmp_path: Path, name: str) -> None:
    run, recorded = two_variants(tmp_path)
    chrome_trace.write(tmp_path / name, recorded, digest.metadata(run))
    assert digest.read(tmp_path / name) == run
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b" if name.endswith("gz") else b"{")


def test_variants_stand_side_by_side(tmp_path: Path) -> None:
    run, recorded = two_variants(tmp_path)
    chrome_trace.write(tmp_path / "out.json", recorded, digest.metadata(run))
    plain = json.loads((tmp_path / "out.json").read_text())
    timed = [e for e in plain["traceEvents"] if "ts" in e]
    for number in (1, 2):
        own = [e for e in timed if e["pid"] // chrome_trace.PIDS == number]
        assert min(e["ts"] for e in own) == 0
    assert len({e["pid"] // chrome_trace.PIDS for e in timed}) == 2
    names = {e["args"]["name"] for e in plain["traceEvents"] if e["name"] == "process_name"}
    assert names == {"1 flash", "2 flash+repshift"}
    assert plain["deviceProperties"] == [cuda_trace.DEVICE]
    assert plain["repshift"]["breakdowns"][1]["case"]["keep"] == 0.6
    launches = [e["args"]["correlation"] for e in timed if e["name"] == "cudaLaunchKernel"]
    assert len(launches) == len(set(launches)) == 2 * (8 + 11)
    ranges = {e["cat"] for e in timed if e["name"].startswith("repshift/")}
    assert ranges == {"user_annotation"}


def test_a_variant_that_failed_takes_no_place(tmp_path: Path) -> None:
    run, recorded = two_variants(tmp_path)
    failed = Breakdown("vanilla", ON_CUDA, "failed", "out of memory")
    run = replace(run, breakdowns=(failed, *run.breakdowns))
    chrome_trace.write(tmp_path / "out.json", recorded, digest.metadata(run))
    assert digest.read(tmp_path / "out.json") == run


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_whoever_is_interrupted_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    run, recorded = two_variants(tmp_path)
    target = tmp_path / "kept" / "out.json"
    target.parent.mkdir()
    target.write_text("the old one")
    annotated, count = chrome_trace._annotated, iter(range(10**6))

    def interrupted(event: Any) -> Any:
        if next(count) > 30:
            raise error
        return annotated(event)

    monkeypatch.setattr(chrome_trace, "_annotated", interrupted)
    with pytest.raises(error):
        chrome_trace.write(target, recorded, digest.metadata(run))
    assert os.listdir(target.parent) == ["out.json"] and target.read_text() == "the old one"


def test_the_copy_for_tensorboard_has_the_categories_that_it_knows(tmp_path: Path) -> None:
    _, recorded = two_variants(tmp_path)
    chrome_trace.write_for_tensorboard(tmp_path / "tb.pt.trace.json", recorded[0])
    plain = json.loads((tmp_path / "tb.pt.trace.json").read_text())
    categories = {e.get("cat") for e in plain["traceEvents"]}
    assert "Runtime" in categories and "cuda_runtime" not in categories
    assert plain["deviceProperties"] == [cuda_trace.DEVICE]


# --- flame graphs -----------------------------------------------------------------------------------------------------


def test_stacks_begin_with_the_forward_and_hold_own_times(tmp_path: Path) -> None:
    out = cuda_trace.Writer()
    out.host("python_function", "repshift_cli/cli.py(3): main", 0, 500)
    out.host("python_function", "repshift_cli/profiling/recorder.py(80): forward", 100, 300)
    out.host("python_function", "vit.py(10): forward; odd", 110, 200)
    out.host("cpu_op", "aten::addmm", 120, 60)
    out.host("cpu_op", "aten::addmm", 190, 15)
    path = stored(tmp_path / "s.json", {"traceEvents": out.events})
    assert list(digest.folded(path, "flash")) == [
        "flash 100",
        "flash;vit.py(10): forward, odd 125",
        "flash;vit.py(10): forward, odd;aten::addmm 75",
    ]


def test_stacks_on_a_device_hold_the_kernels_times(tmp_path: Path) -> None:
    out = cuda_trace.Writer()
    out.host("python_function", "repshift_cli/profiling/recorder.py(80): forward", 100, 300)
    out.host("cpu_op", "aten::addmm", 120, 60)
    out.host("cuda_runtime", "cudaLaunchKernel", 130, 5, correlation=3)
    out.kernel("gemm", 200, 42, 3)
    path = stored(tmp_path / "s.json", {"traceEvents": out.events})
    assert list(digest.folded(path, "flash")) == ["flash;aten::addmm;cudaLaunchKernel;gemm 42"]
