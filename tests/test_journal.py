"""The run file while it grows: nothing written is lost, whatever happens to the process, the disk or the folder."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from synthetic import small_run

from repshift_cli.records import Record, Run, UsageError, store
from repshift_cli.records import journal as journals
from repshift_cli.records.journal import Journal, StoreError
from repshift_cli.records.json_codec import to_json

FULL = small_run()
EMPTY = replace(FULL, records=())


def begun(tmp_path: Path, run: Run = EMPTY) -> Journal:
    return Journal.create(tmp_path / "run.json", run)


def test_each_record_is_readable_at_once_and_the_end_is_one_document(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "deep" / "er" / "run.json", EMPTY)
    for count, record in enumerate(FULL.records, 1):
        journal.begin([record.case])
        journal.add(record)
        assert store.load(journal.path).records == FULL.records[:count]
    again = Record(FULL.records[3].case, "ok", rounds=1)
    journal.add(again)
    assert journal.snapshot().records[3] == store.load(journal.path).records[3] == again
    journal.change(warnings=("late",))
    assert store.load(journal.path).warnings == ("late",)
    whole = journal.snapshot()
    assert journal.close() and journal.path.read_text() == to_json(whole), "written piece by piece, the same text"
    assert store.load(journal.path) == whole and len(whole.records) == len(FULL.records) and whole.warnings == ("late",)
    assert [p.name for p in journal.path.parent.iterdir()] == ["run.json"]


def test_a_record_costs_the_same_however_long_the_file_is(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    sizes = [0]
    for seed in range(40):
        journal.add(replace(FULL.records[0], case=replace(FULL.records[0].case, seed=100 + seed)))
        sizes.append(journal.path.stat().st_size)
    inode = journal.path.stat().st_ino
    journal.add(FULL.records[1])
    assert journal.path.stat().st_ino == inode, "it is added to, not written anew"
    assert len({b - a for a, b in pairwise(sizes[1:])}) <= 2
    journal.close()


def test_cut_at_any_byte_it_holds_every_whole_line_and_resume_goes_on(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    ends = [journal.path.stat().st_size]
    for record in FULL.records[:3]:
        journal.add(record)
        ends.append(journal.path.stat().st_size)
    data = journal.path.read_bytes()
    for cut in {*range(ends[0], len(data) + 1, 211), *ends, *(e - 1 for e in ends[1:])}:
        path = tmp_path / f"{cut}.json"
        path.write_bytes(data[:cut])
        whole = sum(end <= cut for end in ends) - 1
        assert store.load(path).records == FULL.records[:whole]
    path = tmp_path / f"{ends[2] - 1}.json"
    resumed = Journal.open(path)
    resumed.add(FULL.records[1])
    assert store.load(path).records == FULL.records[:2]
    resumed.close()
    journal.close()


def test_what_was_begun_and_never_recorded_is_known(tmp_path: Path) -> None:
    journal = begun(tmp_path)
    first, second = FULL.records[:2]
    for _ in range(2):
        journal.begin([first.case, second.case])
    journal.add(replace(first, reason="a line\u2028within"))  # JSON leaves such ends of lines as they are
    shutil.copy(journal.path, tmp_path / "killed.json")
    killed = Journal.open(tmp_path / "killed.json")
    assert killed.unfinished == {second.case.key: 2} and [r.case for r in killed.records()] == [first.case]
    killed.close()
    journal.close()
    ended = Journal.open(journal.path)
    assert ended.unfinished == {}, "an orderly end is no crash"
    before = journal.path.read_bytes()
    ended.close()
    assert journal.path.read_bytes() == before, "where nothing is added nothing is written"


HOLD = """
import sys, time
from pathlib import Path
from repshift_cli.records import store
from repshift_cli.records.journal import Journal
journal = Journal.open(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_one_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    begun(tmp_path).close()
    with pytest.raises(UsageError, match=r"exists already; go on with it by --resume .*run\.json, or choose another"):
        Journal.create(path, EMPTY)
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=r"another repshift is writing to .*; wait for its end, or choose another"):
            Journal.open(path)
        assert store.load(path) == EMPTY, "reading needs no lock"
    finally:
        other.kill()
        other.communicate()
    Journal.open(path).close()


def test_two_that_want_the_same_name_get_two_files(tmp_path: Path) -> None:
    names = iter([tmp_path / "run.json", tmp_path / "run-2.json"])
    first = begun(tmp_path)
    second = Journal.create(tmp_path / "run.json", EMPTY, lambda: next(names))
    assert (first.path.name, second.path.name) == ("run.json", "run-2.json")
    first.close()
    second.close()


@pytest.mark.parametrize("step", ["pwrite", "fsync"])
def test_a_full_disk_leaves_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    journal = begun(tmp_path)
    journal.add(FULL.records[0])
    real: Any = getattr(os, step)

    def full(*arguments: Any) -> Any:
        if step == "pwrite":  # half a line fits
            real(arguments[0], arguments[1][:50], arguments[2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(StoreError, match=r"cannot write .*run\.json: No space left on device"):
            journal.add(FULL.records[1])
        assert store.load(journal.path).records == FULL.records[:1]
        if step == "fsync":
            assert not journal.close() and store.load(journal.path).records == FULL.records[:1]
            return
    assert journal.snapshot().records == FULL.records[:2], "what was measured is still there to be shown"
    journal.add(FULL.records[2])
    journal.close()


@pytest.mark.slow
def test_every_write_that_can_fail_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SQLite's tests do: fault n of each call in turn; whatever was acknowledged is in the file afterwards."""
    calls = ("pwrite", "pread", "fsync", "replace", "link", "open", "ftruncate", "unlink", "mkdir")
    for owner, call in [*((os, name) for name in calls), (fcntl, "flock"), (journals, "to_plain")]:
        real: Any = getattr(owner, call)
        for number in range(8):
            folder = tmp_path / f"{call}-{number}"
            counted = 0

            def faulty(*arguments: Any, real: Any = real, number: int = number, owner: Any = owner, **more: Any) -> Any:
                nonlocal counted
                counted += 1
                if counted == number + 1:
                    raise MemoryError if owner is journals else OSError(errno.EIO, "Input/output error")
                return real(*arguments, **more)

            acknowledged: list[Record] = []
            with monkeypatch.context() as patch:
                patch.setattr(owner, call, faulty)
                try:
                    journal = Journal.create(folder / "run.json", EMPTY)
                except StoreError:
                    assert not (folder / "run.json").exists()
                    continue
                for record in FULL.records[:3]:
                    try:
                        journal.add(record)
                        acknowledged.append(record)
                    except StoreError:
                        pass
                    stored = store.load(journal.path).records
                    assert [r for r in stored if r in acknowledged] == acknowledged
                journal.close()
            assert [r for r in store.load(journal.path).records if r in acknowledged] == acknowledged, (call, number)
            assert call == "unlink" or [p.name for p in folder.iterdir()] == ["run.json"], (call, number)


def test_a_deleted_folder_is_made_again_with_all_that_was_measured(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "runs" / "run.json", EMPTY)
    journal.add(FULL.records[0])
    shutil.rmtree(tmp_path / "runs")
    journal.add(FULL.records[1])
    assert store.load(journal.path).records == FULL.records[:2]
    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        journal.add(FULL.records[2])
    assert len(journal.snapshot().records) == 3 and not journal.close()


def test_a_relative_path_stays_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal.create(Path("run.json"), EMPTY)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    journal.add(FULL.records[0])
    journal.close()
    assert store.load(tmp_path / "run.json").records == FULL.records[:1]


@pytest.mark.parametrize("now", [0.0, 1e12])
def test_a_clock_that_jumps_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    monkeypatch.setattr(store.time, "time", lambda: now)
    (tmp_path / f".x.json.elsewhere.{os.getpid()}.tmp").touch()
    journal = begun(tmp_path)
    journal.add(FULL.records[0])
    assert store.load(journal.path).records == FULL.records[:1]
    journal.close()
    assert len(list(tmp_path.iterdir())) == 2, "what belongs to a process that runs stays"


def test_leftovers_of_the_dead_go(tmp_path: Path) -> None:
    here = re.sub(r"\W+", "-", platform.node())[:40]
    dead = ["a.json.elsewhere.999999", f"b.json.{here}.999999", "c.json.999999"]
    alive = ["d.json.elsewhere.999999", f"e.json.{here}.{os.getpid()}", f"f.json.elsewhere.{os.getpid()}"]
    for name in (*dead, *alive):
        (tmp_path / f".{name}.tmp").touch()
    for name in (dead[0], dead[2], *alive[1:]):
        os.utime(tmp_path / f".{name}.tmp", (0, 0))
    journal = begun(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"run.json", *(f".{name}.tmp" for name in alive)}
    journal.close()
    (tmp_path / f".{dead[1]}.tmp").touch()
    Journal.open(tmp_path / "run.json").close()
    assert not (tmp_path / f".{dead[1]}.tmp").exists(), "going on with a run tidies up too"


@pytest.mark.parametrize(
    "text", ['{"journal": 1}\n', '{"journal": 1, "run": {}}\n[1]\n', '{"journal": 1, "run": {}}\n']
)
def test_a_damaged_journal_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run\.json is "):
        store.load(tmp_path / "run.json")
