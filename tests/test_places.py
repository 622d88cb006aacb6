"""Where cases are measured: what the options ask of a launcher, who works where, and several machines in one run."""

from __future__ import annotations

import socket
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from synthetic import CUDA, small_run

from repshift_cli import registry
from repshift_cli.analysis import comparison
from repshift_cli.benchmark import agent, engine
from repshift_cli.benchmark.engine import Manner, Order
from repshift_cli.benchmark.launchers import Spent, Terms, local, process
from repshift_cli.benchmark.launchers import ray as on_ray
from repshift_cli.benchmark.pool import Pool
from repshift_cli.commands.shared import launching
from repshift_cli.commands.shared.launching import Where
from repshift_cli.commands.shared.progress import Bar
from repshift_cli.records import Progress, UsageError
from repshift_cli.renderers.sheets.run import sheets
from repshift_cli.sweep.axes import Axes

# --- options ----------------------------------------------------------------------------------------------------------


def terms_of(monkeypatch: pytest.MonkeyPatch, where: Where, order: Order) -> Terms:
    asked: list[Terms] = []

    def start(terms: Terms) -> Any:
        asked.append(terms)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(registry, "load", lambda part: SimpleNamespace(start=start))
    with launching.launched(where, order):
        return asked[0]


def test_the_timeout_of_a_case_goes_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(Axes(), Manner(case_timeout=33.0))
    kept = engine.order_of(replace(small_run(), options=order.manner.as_options()))
    assert kept.manner == order.manner
    assert terms_of(monkeypatch, Where(), kept).patience == 33
    assert terms_of(monkeypatch, Where(case_timeout=7.0), kept).patience == 7
    assert terms_of(monkeypatch, Where(), Order(Axes())).patience == launching.LEAST_PATIENCE


def test_a_history_of_allocations_does_not_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(Axes(), Manner(memory_snapshot="x.pickle"))
    with pytest.raises(UsageError, match="leave it or --on ray out"):
        terms_of(monkeypatch, Where(on="ray"), order)
    assert terms_of(monkeypatch, Where(on="local:0"), order).where == "0"


def test_a_far_cluster_that_does_not_answer_is_said_at_once() -> None:
    """Nothing listens at port 9 here; what is no far address is left to Ray."""
    with pytest.raises(UsageError, match=r"no Ray cluster answers at ray://127\.0\.0\.1:9: "):
        on_ray.check_reached("//127.0.0.1:9")
    with socket.create_server(("127.0.0.1", 0)) as server:
        on_ray.check_reached(f"//127.0.0.1:{server.getsockname()[1]}")
    for where in ("", "auto", "//host"):
        on_ray.check_reached(where)


def test_a_launcher_is_told_what_may_have_to_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order(Axes(model=("a:b",), data="photos", hbm="auto"), Manner(timing_only=True))
    told = terms_of(monkeypatch, Where(on="ray://host:1", parallel=2, device_kind="H100"), order)
    assert (told.where, told.parallel, told.kind, told.models, told.files) == (
        "//host:1",
        2,
        "H100",
        ("a:b",),
        ("photos",),
    )
    assert told.hbm == "off", "no calibration for times alone"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (Where(in_process=True, parallel=2), "--parallel needs another process"),
        (Where(in_process=True, on="ray"), "--on needs another process"),
        (Where(device_kind="H100"), "it goes with --on ray"),
    ],
)
def test_what_does_not_go_together(where: Where, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        where.check()


def test_one_gpu_is_never_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "gpu_count", lambda: 1)
    with pytest.raises(UsageError, match="share one GPU"):
        process.start(Terms(parallel=2))
    with pytest.raises(UsageError, match="leave out --parallel"):
        local.start(Terms("0,1", parallel=2))


@pytest.mark.parametrize(
    ("seen", "gpus", "gpu", "named"),
    [
        (None, 2, 1, "1"),
        (None, 0, 1, "1"),
        ("4,7", 8, 1, "7"),
        ("MIG-a, MIG-b", 1, 1, "MIG-b"),
        ("", 8, 1, ""),
        ("-1", 8, 0, "-1"),
        (None, 2, 2, "there is no GPU local:2: this machine has 2, counted from 0"),
        ("4,7", 8, 2, "there is no GPU local:2: CUDA_VISIBLE_DEVICES=4,7 shows 2, counted from 0"),
    ],
)
def test_a_gpus_number_is_one_of_those_that_the_command_sees(
    seen: str | None, gpus: int, gpu: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler lends some of a machine's GPUs; one that is not there would have the worker measure on the CPU."""
    monkeypatch.setattr(local, "gpu_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if seen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    if named.startswith("there"):
        with pytest.raises(UsageError, match=named):
            local.visible(gpu)
    else:
        assert local.visible(gpu) == named


def test_cores_are_never_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.os, "sched_getaffinity", lambda _: {3, 5, 6, 9, 11}, raising=False)
    assert [agent.share_of_cores(n, 2) for n in range(2)] == [(3, 5), (6, 9)]
    assert agent.share_of_cores(0, 1) == (), "one has all of them"
    with pytest.raises(UsageError, match="6 comparisons at once need as many cores, and there are 5"):
        agent.share_of_cores(0, 6)


# --- a cluster's places -----------------------------------------------------------------------------------------------


def node(name: str, host: str, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerHostname": host, "Alive": name != "dead", "Resources": resources}


NODES = [
    node("a", "one", CPU=8, GPU=2),
    node("b", "two", CPU=8, GPU=1),
    node("c", "two", CPU=8),
    node("dead", "three", CPU=8, GPU=8),
]


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (Terms(), {"one:0": "a", "one:1": "a", "two:0": "b"}),
        (Terms(parallel=1), {"one:0": "a", "two:0": "b"}),
        (Terms(device="cpu"), {"one:0": "a", "two:0": "b"}),
        (Terms(device="cpu", parallel=2), {"one:0": "a", "one:1": "a", "two:0": "b", "two:1": "c"}),
    ],
)
def test_every_gpu_is_a_place_and_on_a_cpu_every_machine(terms: Terms, expected: dict[str, str]) -> None:
    found = list(on_ray.posts(NODES, terms))
    assert {post.place: node for node, post, _ in found} == expected
    needs = {"num_cpus": 1.0} if terms.device == "cpu" else {"num_gpus": 1.0, "num_cpus": 0.0}
    assert all(needed == needs for _, _, needed in found)
    shares = {post.place: post.shares for _, post, _ in found}
    assert all(shares[p] == sum(q.split(":")[0] == p.split(":")[0] for q in shares) for p in shares)


def test_without_gpus_cuda_has_no_place() -> None:
    assert list(on_ray.posts([NODES[2]], Terms(device="cuda"))) == []
    assert [post.place for _, post, _ in on_ray.posts([NODES[2]], Terms())] == ["two:0"]


# --- progress ---------------------------------------------------------------------------------------------------------


def test_the_words_of_several_workers_are_one_progress(capsys: pytest.CaptureFixture[str]) -> None:
    pool = Pool(SimpleNamespace())  # type: ignore[arg-type]
    pool._busy = 1
    alone = Progress("timing", 0.5, 3.0)
    assert pool._of_all(0, alone) is alone
    pool._busy = 3
    pool._of_all(1, Progress("timing", 0.25))
    word = pool._of_all(2, Progress("timing", 0.75, 9.0, "flash 1.0x"))
    assert word == Progress("timing", 1.5, None, "flash 1.0x", workers=3)
    with Bar(10, verbose=True) as bar:
        bar.next()
        bar.update(word)
    assert "1 of 10 done, 3 at work: flash 1.0x" in capsys.readouterr().err


def test_where_the_time_went_in_words() -> None:
    spent = Spent(starts=[4.0, 5.0, 6.0], imports=[3.0, 3.5, 4.0], building=[1.5, 0.0, 0.0, 0.5])
    assert launching.spent_in_words(spent, 60) == (
        "timing: 60.0 s in all; 3 workers started, ready after 5.0 s each (3.5 s of imports); "
        "models built 2 times in 4 comparisons, 2.0 s in all"
    )
    assert "0 workers started; models built 0 times" in launching.spent_in_words(Spent(), 1)


# --- several machines in one run --------------------------------------------------------------------------------------


def test_tables_of_several_devices_are_apart_and_are_not_judged_across() -> None:
    run = small_run()
    group = run.records[0].case.group
    own = [r for r in run.records if r.case.group == group and r.status == "ok"]
    a100 = replace(CUDA, device_name="NVIDIA A100", uuid="GPU-2")
    kinds = {"n1:0": CUDA, "n1:1": replace(CUDA, uuid="GPU-3"), "n2:0": a100}
    placed = [replace(r, place=p, case=replace(r.case, device="cuda:0")) for r, p in zip(own, kinds, strict=False)]
    several = replace(run, machines=kinds, records=tuple(placed), planned=tuple(r.case for r in placed))
    heads = [" ".join(sheet.header) for sheet in sheets(several)]
    assert len(heads) == 2 and "H100" in heads[0] and "A100" in heads[1]
    assert several.measured_on == list(kinds.values())
    same = replace(several, records=tuple(replace(r, place="n1:0") for r in placed))
    assert len(sheets(same)) == 1 and comparison.differences_of(same, same) == {}
    assert "A100" in " ".join(comparison.differences_of(several, several).values())
