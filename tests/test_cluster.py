"""A cluster that is played: workers with a clock of their own, so that thousands of hours pass in seconds."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import small_run

from repshift_cli.benchmark import engine
from repshift_cli.benchmark.engine import AGAIN, Session
from repshift_cli.benchmark.launchers import Death, Task
from repshift_cli.benchmark.pool import Pool
from repshift_cli.benchmark.runner import Settings
from repshift_cli.benchmark.tasks import Comparison, Station
from repshift_cli.records import Case, Record
from repshift_cli.records.journal import Journal
from repshift_cli.sweep.plan import Planned

BASE = small_run().records[0]
SECONDS = 30.0
"""What a comparison takes."""
BUILDING = 20.0
"""What it takes more where another model is built first."""


@dataclass
class Cluster:
    """A crew whose clock stands still while nobody works; what the command itself takes is added by the real clock,
    `pace` times as fast."""

    places: int
    dies: Callable[[Comparison], Death | None] = lambda _: None
    record: Record = BASE
    pace: float = 1.0
    clock: float = 0.0
    busy: float = 0.0
    builds: int = 0
    hired: int = 0
    _told: bool = False
    _queue: list[tuple[float, int, Any]] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)
    _left_at: float = field(default_factory=time.process_time)

    def arrived(self) -> list[int]:
        told, self._told = self._told, True
        return [] if told else list(range(self.places))[::-1]

    def hire(self, place: int) -> Hand:
        self.hired += 1
        return Hand(self, place)

    def work(self, hand: Hand, task: Comparison) -> None:
        """Its end, on the clock."""
        new = hand.last is None or hand.last.subjects[0].group != task.subjects[0].group
        took = SECONDS + BUILDING * new
        self.builds += new
        self.busy += took
        heapq.heappush(self._queue, (self.now() + took, next(self._numbers), hand))

    def now(self) -> float:
        return self.clock + self.pace * (time.process_time() - self._left_at)

    def wait(self, seconds: float) -> list[Any]:
        at, _, hand = heapq.heappop(self._queue)
        self.clock, self._left_at = max(self.now(), at), time.process_time()
        hand.ready = True
        return [hand]

    def close(self) -> None: ...


@dataclass
class Hand:
    """A worker that knows its results beforehand."""

    cluster: Cluster
    place: int
    task: Task | None = None
    last: Task | None = None
    ready: bool = False

    def give(self, task: Any) -> None:
        self.task, self.ready = task, False
        self.cluster.work(self, task)

    def messages(self) -> list[tuple[Any, ...]]:
        task: Any = self.task
        if not self.ready or self.cluster.dies(task):
            return []
        records = [replace(self.cluster.record, case=c, tokens=tokens) for c, tokens in task.cases if c in task.wanted]
        return [*(("result", pickle.loads(pickle.dumps(r))) for r in records), ("done",)]  # as they travel

    def death(self) -> Death | None:
        task: Any = self.task
        return self.cluster.dies(task) if self.ready else None

    def stop(self) -> None: ...
    def end(self) -> None: ...


class Nobody:
    """An observer."""

    def phase(self, text: str) -> None: ...
    def update(self, word: Any) -> None: ...
    def at(self, case: Any) -> None: ...
    def next(self) -> None: ...


def cases(groups: int, schedules: int) -> list[Case]:
    """Groups of one reference and so many pruned cases, each of which makes a comparison with it."""
    found = []
    for seed in range(groups):
        plain = replace(BASE.case, seed=seed, attention="flash", pruning="none", keep=1.0, layers=())
        found.append(plain)
        found += [replace(plain, pruning="random", keep=(1 + n) / 10_000, layers=(1,)) for n in range(schedules)]
    return found


def session(tmp_path: Path, planned: list[Case]) -> Session:
    run = replace(small_run(), planned=tuple(planned), records=())
    journal = Journal.create(tmp_path / "run.json", run)
    cells = tuple(Planned(c, (16,) * (1 + len(c.layers))) for c in planned)
    return Session(journal, cells, Settings(0.01, 1.0), Station("cpu"))


def measured(cluster: Cluster, tmp_path: Path, planned: list[Case]) -> Session:
    begun = session(tmp_path, planned)
    engine.measure(begun, Pool(cluster, now=cluster.now), lambda count: nullcontext(Nobody()))
    return begun


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk whose fsync costs nothing: how long that takes is the disk's affair."""
    monkeypatch.setattr("os.fsync", lambda file: None)


def test_many_workers_share_the_models_and_finish_together(tmp_path: Path, quick_disk: None) -> None:
    cluster = Cluster(places=8)
    planned = cases(groups=16, schedules=20)
    done = measured(cluster, tmp_path, planned)
    assert Counter(r.status for r in done.journal.snapshot().records) == {"ok": len(planned)}
    assert {r.case for r in done.journal.snapshot().records} == set(planned)
    assert 16 <= cluster.builds <= 16 + 2 * 8, "a worker stays with its model, and helps others at the end only"
    assert cluster.clock < 1.15 * cluster.busy / 8


def test_the_dead_are_replaced_and_cost_one_row(tmp_path: Path, quick_disk: None) -> None:
    planned = cases(groups=4, schedules=5)
    bad = planned[3]
    cluster = Cluster(places=3, dies=lambda task: Death("fell", bad) if bad in task.wanted else None)
    done = measured(cluster, tmp_path, planned)
    rows = {r.case: r for r in done.journal.snapshot().records}
    assert rows.pop(bad).reason == "fell" and {r.status for r in rows.values()} == {"ok"}
    assert len(rows) == len(planned) - 1 and cluster.hired == 3 + 1


def test_a_model_that_cannot_be_built_is_tried_twice(tmp_path: Path, quick_disk: None) -> None:
    planned = cases(groups=3, schedules=4)
    tries: list[int] = []

    def dies(task: Comparison) -> Death | None:
        if task.subjects[0].seed != 1:
            return None
        tries.append(id(task))
        return Death("fell while building")

    done = measured(Cluster(places=1, dies=dies), tmp_path, planned)
    failed = [r.case.seed for r in done.journal.snapshot().records if r.status == "failed"]
    assert failed == [1] * 5 and len(set(tries)) == 2 and len(done.done) == len(planned)


def test_what_was_lost_with_its_machine_is_tried_twice_elsewhere(tmp_path: Path, quick_disk: None) -> None:
    planned = cases(groups=2, schedules=3)
    unlucky, losses = planned[2], list[int]()

    def dies(task: Comparison) -> Death | None:
        if unlucky not in task.wanted:
            return None
        losses.append(id(task))
        return Death("the machine was lost", elsewhere=True, place=f"node{len(set(losses))}:0")

    cluster = Cluster(places=5, dies=dies)
    done = measured(cluster, tmp_path, planned)
    rows = {r.case: r for r in done.journal.snapshot().records}
    row = rows.pop(unlucky)
    assert (row.status, row.reason, row.place) == ("failed", "the machine was lost", "node3:0")
    assert {r.status for r in rows.values()} == {"ok"} and len(set(losses)) == 3 and cluster.hired == 5
    said = [w for w in done.journal.snapshot().warnings if "lost" in w]
    assert len(said) == 3 and [AGAIN in w for w in said] == [True, True, False]


def test_a_reference_that_died_is_broken_from_then_on(tmp_path: Path, quick_disk: None) -> None:
    planned = cases(groups=1, schedules=3)
    plain, seen = planned[0], list[Any]()

    def dies(task: Comparison) -> Death | None:
        seen.append((task, plain in task.broken))
        return Death("fell", plain) if planned[2] in task.wanted and plain not in task.broken else None

    done = measured(Cluster(places=1, dies=dies), tmp_path, planned)
    assert {r.status for r in done.journal.snapshot().records} == {"ok"}, "what it measured before it died stays"
    assert list(dict(seen).values()) == [False, False, True, True]


ALL, COMPARISONS_EACH, SCHEDULES = 1000, 100, 50
"""The GPUs that are meant; where a fifth of them is played, what the command takes for them counts five times."""


def a_thousand_gpus(folder: Path, places: int) -> None:
    """The whole sweep, in a process of its own; prints what it took."""
    planned = cases(places * COMPARISONS_EACH // SCHEDULES, SCHEDULES)
    cluster = Cluster(places, record=replace(BASE, measurements=BASE.measurements[:3]), pace=ALL / places)
    begun, before = time.process_time(), most_memory()
    done = measured(cluster, folder, planned)
    own = time.process_time() - begun
    assert len(done.done) == len(planned)
    assert done.journal.close()
    more = (most_memory() - before) * cluster.pace
    print(json.dumps({"own": own * cluster.pace, "clock": cluster.clock, "peak": before + more}))


def most_memory() -> int:
    """The most bytes that this process has held so far; not the parent's, as rusage says."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) * 1024


@pytest.mark.slow
def test_a_thousand_gpus_and_a_hundred_thousand_comparisons(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The command never makes its workers wait for 1% of their time, and keeps within 1 GiB; all with `--gpus 1000`."""
    places = request.config.getoption("--gpus")
    code = f"import os; os.fsync = lambda _: None; from {__name__} import *; a_thousand_gpus(Path('.'), {places})"
    path = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parent.parent)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    ideal = COMPARISONS_EACH * SECONDS + COMPARISONS_EACH / SCHEDULES * BUILDING
    print(
        f"{told['own']:.0f} s of the command, {told['clock']:.0f} s ({ideal:.0f} ideal), {told['peak'] / 2**30:.2f} GiB"
    )
    assert told["clock"] < 1.01 * ideal, "the command's own time included"
    assert told["peak"] < 2**30
