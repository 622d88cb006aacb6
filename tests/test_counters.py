"""The instruments that count HBM traffic, as far as a machine without a GPU can tell."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_counter
import pytest
from fake_machine import FakeNvml
from tiny import case

from repshift_cli.counters import cupti, gpm, ncu
from repshift_cli.counters.base import calibration, child, choice, instruments, permission
from repshift_cli.counters.base.calibration import KNOWN, judge
from repshift_cli.counters.base.traffic import CounterError, Traffic
from repshift_cli.records import Calibration, UsageError
from repshift_cli.sweep.axes import Axes

HERE = Path(__file__).parent


def test_the_choices_are_the_instruments() -> None:
    assert instruments.ORDER == ("cupti", "ncu", "gpm")
    for name in ("auto", *instruments.ORDER, "model", "off"):
        assert Axes.from_options({"hbm": name}).hbm == name
    assert {instruments.load(name).LABEL for name in instruments.ORDER} == set(calibration.TOLERANCE)


# --- the child --------------------------------------------------------------------------------------------------------


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setattr(instruments, "load", lambda name: fake_counter)
    return monkeypatch


@pytest.mark.parametrize(
    ("misdeed", "reason"),
    [
        ("crash", r"^the child crashed \(SIGSEGV\)"),
        ("exit", r"^the child ended with code 3: the last words$"),
        ("refuse", "^no privilege to read the counters$"),
        ("raise", "^ZeroDivisionError: division by zero$"),
    ],
)
def test_whatever_the_child_does_is_one_reason(counter: pytest.MonkeyPatch, misdeed: str, reason: str) -> None:
    counter.setenv("FAKE_COUNTER", misdeed)
    with pytest.raises(CounterError, match=reason):
        instruments.run(fake_counter, "cpu", None, 3)


def test_a_child_that_hangs_is_ended(counter: pytest.MonkeyPatch) -> None:
    counter.setenv("FAKE_COUNTER", "hang")
    with pytest.raises(CounterError, match=r"did not answer within 1.5 s and was ended"):
        instruments.run(fake_counter, "cpu", None, 3, limit=1.5)


def answering(text: str) -> Any:
    """An instrument whose child writes this text as its answer."""
    code = f"import sys; open(sys.argv[-1], 'w').write({text!r})"
    return SimpleNamespace(
        __name__="fake_counter",
        command=lambda worker, folder: [sys.executable, "-c", code, *worker],
        collect=fake_counter.collect,
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Segmentation fault", "answered garbage: 'Segmentation fault'"),
        ("", "answered garbage: ''"),
        ("[1, 2]", "answered garbage"),
        ('{"counts": 3}', "answered garbage"),
        ('{"counted": 3}', "does not fit: 3"),
        ('{"counted": [[1, 2]]}', "1 ranges were counted instead of 3"),
        ('{"counted": [[1, 2, 3]]}', "does not fit"),
        ('{"counted": [[1, 2], [1, 2], [1, -2]]}', "-1 is no number of bytes"),
        ('{"counted": [[1, 2], [1, 2], [1, NaN]]}', "nan is no number of bytes"),
        ('{"counted": [[1, 2], [1, 2], ["", ""]]}', "'' is no number of bytes"),
        ('{"error": "hardware busy"}', "^hardware busy$"),
    ],
)
def test_a_garbled_answer_is_one_reason(text: str, reason: str) -> None:
    with pytest.raises(CounterError, match=reason):
        instruments.run(answering(text), "cpu", None, 3)


def test_a_program_that_does_not_start_is_one_reason() -> None:
    missing = SimpleNamespace(
        __name__="x", command=lambda worker, folder: ["no-such-program", *worker], collect=fake_counter.collect
    )
    with pytest.raises(CounterError, match="no-such-program does not start: No such file"):
        instruments.run(missing, "cpu", None, 3)


# --- ncu --------------------------------------------------------------------------------------------------------------

HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size","Device",'
    '"CC","dram__bytes_read.sum","dram__bytes_write.sum"'
)
UNITS = '"","","","","","","","","","","","byte","byte"'
ROW = '"{}","1","python3","127.0.0.1","range","1","7","(0, 0, 0)","(0, 0, 0)","0","9.0","{}","{}"'
PROF = '==PROF== Connected to process 1 (/usr/bin/python3.12)\n==PROF== Profiling "range": 0%....50%....100% - 1 pass'


def log(*rows: tuple[str, str], units: str = UNITS, head: str = HEAD) -> str:
    body = [ROW.format(i, *values) for i, values in enumerate(rows)]
    return "\n".join([PROF, head, units, *body, "==PROF== Disconnected from process 1"]) + "\n"


def test_a_log_of_ncu_is_read() -> None:
    text = log(("17,179,869,184", "17179869184"), ("4,096", "0"), ("1,234.5", "12"))
    assert ncu.parse(text) == [Traffic.of(2**34, 2**34), Traffic.of(4096, 0), Traffic.of(1234.5, 12)]


def test_the_columns_are_found_by_name_and_quotes_respected() -> None:
    head = '"ID","dram__bytes_write.sum","Kernel Name","dram__bytes_read.sum"'
    text = f'{PROF}\n\n{head}\n"","byte","","byte"\n"0","7","a, ""b""","5"\n'
    assert ncu.parse(text) == [Traffic.of(5, 7)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "ncu counted nothing: its log has no range"),
        (f"{PROF}\n==WARNING== No kernels were profiled.\n", "ncu counted nothing: No kernels were profiled."),
        (log(), "ncu counted nothing: its log has no range"),
        (f"{PROF}\n{HEAD}\n", "in no unit, not in byte"),
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission\n", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("==ERROR== Unknown Error on device 0.\n", "Unknown Error on device 0"),
        (log(("1", "2"), units=UNITS.replace("byte", "Gbyte")), "in 'Gbyte' and 'Gbyte', not in byte"),
        (log(("1", "2"), head=HEAD.replace("write", "wrote")), "no column dram__bytes_write.sum"),
        (log(("n/a", "2")), "'n/a' where a number"),
        (log(("", "2")), "'' where a number"),
        (log(("nan", "2")), "'nan' where a number"),
        (log(("-5", "2")), "'-5' where a number"),
        (log(("17.179.869.184", "2")), "'17.179.869.184' where a number"),
        (log(("1,5", "2")), "'1,5' where a number"),
        (log(("1e9", "2")), "'1e9' where a number"),
        (f'{PROF}\n{HEAD}\n{UNITS}\n"0","1","python3"\n', "'' where a number"),
        ("\x00\ufffd garbage \x1b[31m\n,,,\n", "ncu counted nothing"),
    ],
)
def test_a_log_without_figures_is_one_reason(text: str, reason: str) -> None:
    with pytest.raises(CounterError, match=reason.replace("(", r"\(")):
        ncu.parse(text)


def test_ncu_neither_flushes_caches_nor_locks_clocks(tmp_path: Path) -> None:
    line = " ".join(ncu.command(["python", "-m", "x"], tmp_path))
    for option in (
        "--cache-control none",
        "--clock-control none",
        "--replay-mode app-range",
        "--print-units base",
        "--metrics dram__bytes_read.sum,dram__bytes_write.sum",
        f"--log-file {tmp_path}/ncu.csv",
    ):
        assert option in line
    assert line.endswith("python -m x")


FAKE_NCU = """#!{python}
import json, sys
arguments = sys.argv[1:]
open(arguments[arguments.index("--log-file") + 1], "w").write({log!r})
open(arguments[-1], "w").write(json.dumps({{"counted": [None, None, None]}}))
"""


@pytest.mark.parametrize(("rows", "reason"), [(3, None), (2, "ncu logged 2 ranges instead of 3"), (0, "nothing")])
def test_the_ranges_come_from_ncus_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, reason: str | None
) -> None:
    text = log(*[(str(i), "1") for i in range(rows)])
    program = tmp_path / "ncu"
    program.write_text(FAKE_NCU.format(python=sys.executable, log=text))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ncu.program() == str(program)
    if reason is None:
        assert instruments.run(ncu, "cuda", None, 3) == [Traffic.of(i, 1) for i in range(3)]
        return
    with pytest.raises(CounterError, match=reason):
        instruments.run(ncu, "cuda", None, 3)


def test_without_ncu_the_way_to_get_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(ncu, "PROGRAMS", ("ncu",))
    assert ncu.unavailable("cuda") == "ncu is not found; install Nsight Compute, or add it to PATH"


def test_closed_counters_carry_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = tmp_path / "params"
    parameters.write_text("RmProfilingAdminOnly: 1\n")
    monkeypatch.setattr(permission, "NVIDIA_PARAMETERS", parameters)
    monkeypatch.setattr(permission, "is_admin", lambda: False)
    monkeypatch.setattr(ncu, "program", lambda: "/usr/bin/ncu")
    monkeypatch.setattr(cupti, "find_library", lambda: Path("libcupti.so.13"))
    for part in (ncu, cupti):
        words = part.unavailable("cuda")
        assert "RmProfilingAdminOnly: 1" in words and "NVreg_RestrictProfilingToAdminUsers=0" in words
    monkeypatch.setattr(permission, "is_admin", lambda: True)
    assert ncu.unavailable("cuda") is None and cupti.unavailable("cuda") is None


# --- GPM --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "refuse", "reason"),
    [
        ({}, (), None),
        ({"gpm": 0}, (), r"not supported on this GPU \(it needs Hopper"),
        ({"mig": 1}, (), "this is a MIG slice"),
        ({}, ("gpm",), "GPM does not answer: Not Supported"),
        ({}, ("bus",), "the peak bandwidth is not known: Not Supported"),
        ({"bus": 0}, (), "the peak bandwidth is not known: bus width 0"),
        ({"bus": None}, (), "the peak bandwidth is not known: bus width None"),
        ({}, ("init",), "NVML does not start: Not Supported"),
    ],
)
def test_gpm_says_why_it_cannot(two_gpus: pytest.MonkeyPatch, told: Any, refuse: Any, reason: str | None) -> None:
    two_gpus.setitem(sys.modules, "pynvml", FakeNvml(refuse=refuse, **told))
    words = gpm.unavailable("cuda")
    assert (words is None) if reason is None else re.search(reason, words or "")


class Clock:
    """Seconds that pass by the work done: 0.5 each time."""

    def __init__(self) -> None:
        self.time, self.runs = 0.0, 0

    def work(self) -> None:
        self.time, self.runs = self.time + 0.5, self.runs + 1


def test_gpm_turns_a_share_into_a_loop(two_gpus: pytest.MonkeyPatch) -> None:
    api, clock = FakeNvml(utilisation=25.0), Clock()
    share, seconds, times = gpm.sample(api, "GPU", clock.work, lambda: None, now=lambda: clock.time)
    assert (share, seconds, times) == (0.25, 3.0, 6)
    assert clock.runs == 7, "one run goes before the first sample"
    assert api.samples == ["alloc", "alloc", "get", "get", "free", "free"]


@pytest.mark.parametrize(
    ("told", "refuse", "reason"),
    [({"gpm_return": 3}, (), r"no DRAM bandwidth \(NVML return code 3\)"), ({}, ("sample",), "GPM: Not Supported")],
)
def test_gpm_frees_its_samples_when_it_fails(told: Any, refuse: Any, reason: str) -> None:
    api, clock = FakeNvml(refuse=refuse, **told), Clock()
    with pytest.raises(CounterError, match=reason):
        gpm.sample(api, "GPU", clock.work, lambda: None, now=lambda: clock.time)
    assert api.samples[-2:] == ["free", "free"]


def test_gpm_gives_bytes_of_one_run(two_gpus: pytest.MonkeyPatch) -> None:
    from repshift_cli.machine import device as devices

    torch = devices.import_torch()
    torch.cuda.synchronize = lambda: None
    two_gpus.setattr(devices, "import_torch", lambda: torch)
    two_gpus.setattr(gpm, "sample", lambda *_: (0.5, 3.0, 100))
    peak = 5120 / 8 * 2 * 2619e6
    with gpm.counting("cuda") as count:
        assert count(lambda: None) == [0.5 * peak * 3.0 / 100]
    assert gpm.collect([[7.0]], Path(), 1) == [Traffic(7.0, None, None)]


# --- calibration ------------------------------------------------------------------------------------------------------


def of(read: float, written: float, empty: float = 0.0, twice: float = 2.0) -> list[Traffic]:
    once = Traffic.of(read * KNOWN, written * KNOWN)
    return [once, Traffic.of(empty, 0), Traffic.of(twice * once.total, 0)]


@pytest.mark.parametrize(
    ("ranges", "wrong"),
    [
        (of(1, 1), None),
        (of(1.049, 0.951, 2**26, 2.019), None),
        (of(1.051, 1), "read: 1.051 of the known bytes"),
        (of(1, 0.949), "written: 0.949 of the known bytes"),
        (of(1, 1, empty=2**26 + 2**20), "65 MiB where nearly nothing ran"),
        (of(1, 1, twice=2.03), "twice the work gave 2.030 times"),
        (of(1, 1, twice=1), "twice the work gave 1.000 times"),
        (of(0, 0), "read: 0.000 of the known bytes"),
        (of(2, 2), "read: 2.000"),
    ],
)
def test_a_counter_is_held_against_known_bytes(ranges: list[Traffic], wrong: str | None) -> None:
    found = judge(Calibration("cupti", "counter", False), ranges)
    assert found.passed is (wrong is None)
    assert wrong is None or wrong in (found.reason or "")


@pytest.mark.parametrize(("total", "passed"), [(1.09, True), (0.91, True), (1.11, False), (0.89, False)])
def test_what_is_sampled_has_its_sum_judged(total: float, passed: bool) -> None:
    once = Traffic(2 * KNOWN * total)
    found = judge(Calibration("gpm", "sampled", False), [once, Traffic(0.0), Traffic(2.05 * once.total)])
    assert found.passed is passed
    assert (found.read, found.written, round(found.total or 0, 3)) == (None, None, total)


def test_the_known_work_is_sixteen_passes() -> None:
    """16 GiB each way, held against the model on a small tensor."""
    import torch

    from repshift_cli.probes.base.traffic_model import TrafficModel

    size = calibration.SIZE
    try:
        calibration.SIZE = 2**10
        once, empty, twice = calibration.known_work(torch, "cpu")
    finally:
        calibration.SIZE = size
    sums = []
    for work in (once, empty, twice):
        with TrafficModel() as model:
            work()
        sums.append((model.read, model.written))
    assert sums == [(16 * 2**10, 16 * 2**10), (4, 4), (32 * 2**10, 32 * 2**10)]
    assert KNOWN == 16 * 2**30


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "repshift" / "calibration.json"


def test_a_calibration_is_kept_for_its_circumstances(cache: Path, two_gpus: pytest.MonkeyPatch) -> None:
    key = calibration.key("cupti", "cuda")
    assert "GPU-1111-aa" in key and "driver 580.1" in key
    first = calibration.kept(Calibration("cupti", "counter", True, read=1.0, key=key))
    calibration.kept(Calibration("ncu", "counter", False, "no", key=key))
    assert calibration.cached("cupti", key) == first
    assert calibration.cached("cupti", calibration.key("cupti", "cuda:1")) is None
    assert calibration.cached("gpm", key) is None
    two_gpus.setattr(cupti, "identity", lambda: "another/libcupti.so.13")
    assert calibration.cached("cupti", calibration.key("cupti", "cuda")) is None
    newer = calibration.kept(Calibration("cupti", "counter", False, "busy", key=key))
    assert calibration.cached("cupti", key) == newer
    assert len(json.loads(cache.read_text())) == 2


@pytest.mark.parametrize("text", ["", "{", "[3]", '[{"provider": 1}]', '{"a": 1}', "\x00"])
def test_a_damaged_cache_is_no_cache(cache: Path, text: str) -> None:
    cache.parent.mkdir()
    cache.write_text(text)
    assert calibration.cached("cupti", "") is None
    assert calibration.kept(Calibration("cupti", "counter", True)) == calibration.cached("cupti", "")


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert calibration.kept(Calibration("cupti", "counter", True)).passed
    assert calibration.cached("cupti", "") is None


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.fixture
def played(cache: Path, two_gpus: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Instruments by a table of outcomes: why unavailable, or the ranges that the child counts, or its error."""

    def play(**outcomes: Any) -> list[str]:
        runs: list[str] = []

        def load(name: str) -> Any:
            told = outcomes[name]
            label = "sampled" if name == "gpm" else "counter"
            why = told if isinstance(told, str) else None
            return SimpleNamespace(name=name, LABEL=label, unavailable=lambda device: why, identity=str)

        def run(instrument: Any, *_: Any) -> list[Traffic]:
            runs.append(instrument.name)
            told = outcomes[instrument.name]
            if isinstance(told, Exception):
                raise told
            return told

        two_gpus.setattr(instruments, "load", load)
        two_gpus.setattr(instruments, "run", run)
        return runs

    two_gpus.play = play  # type: ignore[attr-defined]
    return two_gpus


def test_auto_takes_the_first_that_passes(played: Any) -> None:
    runs = played.play(cupti=CounterError("hardware busy"), ncu=of(1.3, 1), gpm=of(1, 1))
    found = choice.choose("auto", "cuda")
    assert (found.instrument, found.label) == ("gpm", "sampled")
    assert [c.passed for c in found.calibrations] == [False, False, True]
    assert runs == ["cupti", "ncu", "gpm"]
    assert choice.choose("auto", "cuda").instrument == "gpm"
    assert runs == ["cupti", "ncu", "gpm"], "the second time all three come from the cache"


def test_auto_with_nothing_says_why_for_each(played: Any) -> None:
    played.play(cupti="the counters are restricted", ncu="ncu is not found", gpm=of(0.5, 0.5))
    found = choice.choose("auto", "cuda")
    assert found.instrument is None
    assert found.reason.startswith("cupti: the counters are restricted; ncu: ncu is not found; gpm: read: 0.500")
    assert "`repshift doctor --counters` calibrates again" in found.reason


def test_an_instrument_that_is_named_is_used_or_refused(played: Any) -> None:
    played.play(cupti=of(1, 1), ncu="ncu is not found; install Nsight Compute", gpm=of(1.2, 1))
    assert choice.choose("cupti", "cuda").instrument == "cupti"
    with pytest.raises(UsageError, match=r"^--hbm ncu: ncu is not found; install Nsight Compute$"):
        choice.choose("ncu", "cuda")
    with pytest.raises(UsageError, match=r"^--hbm gpm: read: 1\.200 of the known bytes"):
        choice.choose("gpm", "cuda")


def test_on_a_cpu_there_is_nothing_to_count() -> None:
    assert choice.choose("auto", "cpu") == choice.Choice(None, "no GPU in this run")
    assert choice.choose("off", "cpu").modelled is False and choice.choose("model", "cuda").modelled is True
    with pytest.raises(UsageError, match=r"^--hbm cupti counts on a GPU, and this run is on the CPU"):
        choice.choose("cupti", "cpu")


def test_the_doctor_shows_ratios_and_reasons(played: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from repshift_cli.cli import run

    played.setenv("COLUMNS", "300")
    played.play(cupti=of(1.004, 0.998), ncu=of(1.3, 1), gpm="GPM is not supported on this GPU")
    assert run(["doctor", "--counters", "--device", "cuda:1"], False) == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
    assert lines["cupti"].startswith(
        "cupti yes counter; read 1.004, written 0.998 of the known bytes; twice the work 2.0"
    )
    assert lines["ncu"].startswith("ncu no counter; read 1.300") and "not used: read: 1.300" in lines["ncu"]
    assert lines["gpm"] == "gpm no GPM is not supported on this GPU"
    assert lines["peak"] == "peak bandwidth yes 3352 GB/s (NVML: 5120 bit x 2 x 2619 MHz)"
    assert run(["doctor", "--counters", "--device", "cuda:5"], False) == 2
    assert "there is no cuda:5: the last device here is cuda:1" in capsys.readouterr().err


# --- permission -------------------------------------------------------------------------------------------------------


def test_the_childs_package_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert child._environment()["PYTHONPATH"] == os.pathsep.join((str(HERE.parent), "/elsewhere"))


# --- from the instrument to the record --------------------------------------------------------------------------------


OWN: dict[str, Any] = {"model": "fake_counter:tiny_model", "weights": "own", "batch": 2}


@pytest.mark.slow
def test_counted_bytes_reach_the_record(counter: pytest.MonkeyPatch) -> None:
    """A pruned case is rebuilt and counted in a child, though libraries print on its stdout: the bytes that this
    process models, their intensity, and a share for which no peak is known."""
    from repshift_cli.benchmark import builder, runner

    pruned = case(**OWN, attention="flash", pruning="stride", keep=0.5, layers=(1,))
    step_builder = builder.StepBuilder("cpu", choice=choice.Choice("fake_counter", ""))
    settings = runner.Settings(precision=0.5, budget=0.01, rounds=1)
    record = next(runner.compare([(pruned, (17, 9))], {pruned}, step_builder.parts, settings))
    assert record.status == "ok", record.reason
    told = {m.metric: m for m in record.measurements}
    modelled = told["hbm_modelled"].samples[0]
    assert told["hbm"].samples == (modelled,) * 3, "the fake counts what the model sees"
    assert (told["hbm"].provider, told["hbm"].source) == ("fake_counter", "counter")
    assert told["arithmetic_intensity"].samples[0] == 2 * 2 * told["macs"].samples[0] / modelled
    assert told["hbm_share_of_peak"].reason is not None
    assert told["energy"].reason == "no GPU in this run"


@pytest.mark.slow
def test_a_child_that_crashes_leaves_the_record_whole(counter: pytest.MonkeyPatch) -> None:
    from repshift_cli.benchmark import builder, runner

    counter.setenv("FAKE_COUNTER", "crash")
    flash = case(**OWN, attention="flash")
    step_builder = builder.StepBuilder("cpu", choice=choice.Choice("fake_counter", ""))
    settings = runner.Settings(precision=0.5, budget=0.01, rounds=1)
    record = next(runner.compare([(flash, (17,))], {flash}, step_builder.parts, settings))
    told = {m.metric: m for m in record.measurements}
    assert record.status == "ok" and told["latency"].samples and told["hbm_modelled"].samples
    assert told["hbm"].reason == "fake_counter: the child crashed (SIGSEGV)"


def test_a_run_file_of_schema_1_is_read() -> None:
    """As the first version wrote it: without calibrations, instruments and parts."""
    from synthetic import small_run

    from repshift_cli.records import Run
    from repshift_cli.records.json_codec import from_plain, to_plain

    plain = {k: v for k, v in to_plain(small_run()).items() if k != "calibrations"} | {"schema": 1}
    plain["machine"].pop("peak_bandwidth")
    for record in plain["records"]:
        record["measurements"] = [
            {k: v for k, v in m.items() if k not in ("provider", "parts")} for m in record["measurements"]
        ]
    assert from_plain(Run, plain) == replace(small_run(), schema=1)
