"""`repshift profile` and the probe under it: ranges around what really runs, files, views, what is refused."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import cuda_trace
import jsonschema
import pytest
import tiny
import torch
from test_chrome_trace import two_variants
from tiny import FAMILIES, Plain, case

import repshift_cli
from repshift_cli.benchmark import builder
from repshift_cli.cli import run
from repshift_cli.commands.profile import _write_snapshots, profile_schema
from repshift_cli.profiling import annotations, chrome_trace, digest
from repshift_cli.profiling import recorder as probe
from repshift_cli.profiling.attribution import nanoseconds, nested
from repshift_cli.records import Case, Run, Step, UsageError, store
from repshift_cli.records.json_codec import to_json, to_plain
from repshift_cli.records.profile import Breakdown, ProfileRun
from repshift_cli.renderers import document_of, table
from repshift_cli.renderers.sheets.profile import profile_sheets, readable

OWN = """
import tiny, torch

def small():
    module = tiny.roughen(tiny.PlainTransformer())
    return module, (tiny.pixels(2, 12, tiny.WIDTH).float(),)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a user's own tiny model, in the current folder."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return f"{name}:small"


def repshift(*arguments: object) -> int:
    return run([str(a) for a in arguments], debug=False)


def step_of(plain: Plain, given: Case) -> Step:
    return builder.eager_step(given, tiny.subject(plain.module, plain.inputs))


def recorded(step: Step, folder: Path, steps: int = 2) -> tuple[Breakdown, list[dict[str, Any]]]:
    path = folder / "t.json"
    probe.record(step, path, steps)
    found, _ = digest.digest(Breakdown(step.case.variant, step.case), path)
    return found, list(chrome_trace.Trace(path))


PRUNED: dict[str, Any] = {"attention": "flash", "pruning": "repshift", "keep": 0.5, "layers": (2,)}
PRUNED |= {"options": (("operation", "mlp"), ("distance", "l2"), ("form", "update"))}


# --- ranges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_of_every_family_is_told_apart(family: str, tmp_path: Path) -> None:
    found, _ = recorded(step_of(FAMILIES[family](), case(**PRUNED)), tmp_path)
    wanted = {"attention", "projection", "mlp", "norm"}
    if family in ("torch_encoder", "post_norm", "post_norm_padded"):
        wanted.remove("projection")  # nn.MultiheadAttention projects by functions, in no module of their own
    for layer in range(1, tiny.DEPTH + 1):
        parts = {p.part for p in found.parts if p.layer == layer}
        assert wanted <= parts
        assert (parts & set(annotations.SELECTION) == set(annotations.SELECTION)) == (layer == 2)
    assert sum(p.host_ms for p in found.parts) == pytest.approx(found.step, rel=0.02)
    assert found.warnings == ()


def held_by(events: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """How often every operator ran inside each kind of range, by its place in the trace."""
    taken = [e for e in events if e.get("cat") in ("cpu_op", "user_annotation")]
    begun = [nanoseconds(e["ts"]) or 0 for e in taken]
    rows = sorted(
        ((at, at + (nanoseconds(e["dur"]) or 0), e["name"]) for at, e in zip(begun, taken, strict=True)),
        key=lambda row: (row[0], -row[1]),
    )
    around, _, crossing = nested([row[:2] for row in rows])
    assert crossing == 0
    parts: list[str] = []
    held: Counter[tuple[str, str]] = Counter()
    for i, (_, _, name) in enumerate(rows):
        outside = parts[around[i]] if around[i] >= 0 else ""
        parts.append(name.removeprefix(annotations.PREFIX) if name.startswith(annotations.PREFIX) else outside)
        held[(parts[i].split()[0] if parts[i] else "", name)] += 1
    return held


def test_what_each_part_holds(tmp_path: Path) -> None:
    """The operators that run inside each kind of range, by their places in the trace."""
    _, events = recorded(step_of(tiny.vit(), case(**PRUNED)), tmp_path, steps=1)
    held = held_by(events)
    assert held[("projection", "aten::linear")] == 4 * tiny.DEPTH
    assert held[("mlp", "aten::linear")] == 2 * tiny.DEPTH
    assert held[("mlp", "aten::gelu")] == tiny.DEPTH
    assert held[("norm", "aten::layer_norm")] == 2 * tiny.DEPTH
    assert held[("attention", "aten::_scaled_dot_product_flash_attention_for_cpu")] == tiny.DEPTH
    assert held[("score", "aten::linalg_vector_norm")] == 1 and held[("select", "aten::sort")] >= 1
    late = "of x' and of the branch, added for the rows that stay"
    assert held[("cut", "aten::index_select")] == 2 and held[("cut", "aten::add")] >= 1, late
    assert held[("block", "aten::add")] == 2 * tiny.DEPTH - 1, "the residual sums, but for the one in the cut"


def test_asking_a_block_is_part_of_the_score_and_its_run_is_not(tmp_path: Path) -> None:
    """MCTF has the block run twice, the first time for its q and k and with one token in its MLP."""
    given = case(attention="flash", pruning="mctf", keep=0.5, layers=(2,))
    given = given.with_options(ahead="again", map="rows", tau_sim=1.0, tau_info=20.0, tau_size=40.0, proportional="off")
    held = held_by(recorded(step_of(tiny.vit(), given), tmp_path, steps=1)[1])
    linear = {part: held[part, "aten::linear"] for part in ("projection", "mlp", "score")}
    assert linear == {"projection": 4 * tiny.DEPTH, "mlp": 2 * tiny.DEPTH, "score": 4 + 2}
    assert held["norm", "aten::layer_norm"] == 2 * tiny.DEPTH and held["score", "aten::layer_norm"] == 2


def test_a_methods_own_cut_is_a_cut(tmp_path: Path) -> None:
    given = case(attention="flash", pruning="oracle", keep=0.5, layers=(1,))
    found, _ = recorded(step_of(tiny.vit(), given), tmp_path)
    assert {p.part for p in found.parts if p.part in annotations.SELECTION} == {"cut"}


def test_a_layer_scale_is_neither_attention_nor_mlp() -> None:
    block = next(m for m in tiny.dinov2().module.modules() if hasattr(m, "layer_scale1"))
    assert not probe._computes(block.layer_scale1)
    assert probe._computes(block.mlp) and probe._computes(torch.nn.GELU())


def test_without_a_listener_a_range_is_nothing() -> None:
    assert annotations.part("score") is annotations.part("cut")
    assert isinstance(annotations.part("score"), nullcontext)
    names: list[str] = []

    def opener(name: str) -> Any:
        names.append(name)
        return nullcontext()

    with annotations.listening(opener), annotations.part("score"):
        pass
    with annotations.part("cut"):
        pass
    assert names == ["repshift/score"]


def test_recording_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    plain = tiny.vit()
    before = plain.module(**plain.inputs).logits
    attention = torch.nn.functional.scaled_dot_product_attention
    recorded(step_of(plain, case(**PRUNED)), tmp_path)
    assert torch.equal(plain.module(**plain.inputs).logits, before)
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.module.modules())
    assert isinstance(annotations.part("score"), nullcontext)


def test_a_forward_that_fails_closes_its_ranges(tmp_path: Path) -> None:
    plain = tiny.vit()
    step = step_of(plain, case(**PRUNED))
    closed: list[str] = []

    class Range:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None:
            closed.append(self.name)

    def fails(*arguments: Any) -> None:
        raise RuntimeError("no")

    handle = plain.module.vit.layers[1].mlp.register_forward_pre_hook(fails)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="no"):
        patch.setattr(probe, "opened", Range)
        with step.active(), probe._labelled(step):
            step.forward()
    handle.remove()
    assert closed[-1] == "repshift/block 2"
    assert not any(m._forward_hooks for m in plain.module.modules())


def test_on_cuda_ranges_are_nvtx_ranges_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch.cuda.nvtx, "range_push", lambda name: said.append(f"push {name}"))
    monkeypatch.setattr(torch.cuda.nvtx, "range_pop", lambda: said.append("pop"))
    plain = tiny.vit()
    step = replace(step_of(plain, case(**PRUNED)), case=case(**PRUNED, device="cuda"))
    with step.active(), probe._labelled(step):
        step.forward()
    assert said[:2] == ["push repshift/block 1", "push repshift/norm"]
    assert said.count("pop") == len(said) / 2 and said.count("push repshift/score") == 1


def test_a_memory_snapshot_is_bounded_and_stops_recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With torch's calls played: nothing of it has been seen on a GPU."""
    said: list[Any] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **given: said.append(given))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", said.append)
    step = step_of(tiny.vit(), case(**PRUNED))
    probe.record_memory(step, tmp_path / "m.pickle")
    assert said == [{"max_entries": probe.MOST_MEMORY_EVENTS}, str(tmp_path / "m.pickle"), {"enabled": None}]


@pytest.mark.parametrize(
    ("names", "files"), [(["flash"], ["m.pickle"]), (["a", "b keep 0.5"], ["m-a.pickle", "m-b_keep_0.5.pickle"])]
)
def test_memory_snapshots_are_one_file_per_variant(tmp_path: Path, names: list[str], files: list[str]) -> None:
    recorded = []
    for number, name in enumerate(names):
        (tmp_path / f"{number}.pickle").write_bytes(b"x")
        recorded.append(chrome_trace.Recorded(name, tmp_path / f"{number}.json", 0))
    (tmp_path / "out").mkdir()
    _write_snapshots(tmp_path / "out" / "m.pickle", recorded)
    assert sorted(os.listdir(tmp_path / "out")) == files


def test_steps_are_as_many_as_asked_for(tmp_path: Path) -> None:
    found, _ = recorded(step_of(tiny.vit(), case(attention="flash")), tmp_path, steps=3)
    assert len(found.step_ms) == 3


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_run_with_every_output(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {n: tmp_path / p for n, p in (("trace", "t.json.gz"), ("summary", "s.json"), ("stacks", "st.txt"))}
    wanted = [word for name, path in places.items() for word in (f"--{name}", path)]
    assert repshift("profile", "--model", model, "--layers", "1", "--tensorboard", tmp_path / "tb", *wanted) == 0
    shown = capsys.readouterr()
    assert [line for line in shown.err.splitlines() if not line.startswith(("trace:", "TensorBoard", "stacks:"))] == []
    variants = ["vanilla", "flash", "flash+repshift"]
    assert [line.split(" ·")[0] for line in shown.out.splitlines() if line.split(" ·")[0] in variants] == variants

    summary = store.load_any(places["summary"])
    assert isinstance(summary, ProfileRun)
    jsonschema.validate(json.loads(places["summary"].read_text()), profile_schema())
    for b in summary.breakdowns:
        assert (b.status, len(b.step_ms), b.busy_ms) == ("ok", 5, None)
        assert sum(p.host_ms for p in b.parts) == pytest.approx(b.step, rel=0.02)
    assert summary.breakdowns[0].kernel and summary.machine and summary.machine.cpu

    read = digest.read(places["trace"])
    assert read.breakdowns == summary.breakdowns and read.machine == summary.machine

    assert sorted(os.listdir(tmp_path / "tb")) == sorted(variants)
    frames = [line.split(";")[0] for line in places["stacks"].read_text().splitlines()]
    assert {f.split()[0] for f in frames} == set(variants)
    assert all(line.rsplit(" ", 1)[1].isdigit() for line in places["stacks"].read_text().splitlines())
    assert any("aten::" in line for line in places["stacks"].read_text().splitlines())

    assert repshift("profile", "--read", places["trace"], "--by", "layer", "--diff") == 0
    again = capsys.readouterr().out
    assert repshift("show", places["summary"], "--by", "layer", "--diff") == 0
    assert capsys.readouterr().out == again and "vanilla → flash" in again


def test_a_case_that_cannot_be_is_skipped_and_the_others_go_on(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert repshift("profile", "--model", model, "--variant", "cudnn,flash", "--steps", "1") == 0
    shown = capsys.readouterr().out
    assert "skipped: exists on CUDA only" in shown and "step" in shown


def test_nothing_profiled_exits_5(model: str, tmp_path: Path) -> None:
    target = tmp_path / "t.json"
    assert repshift("profile", "--model", model, "--variant", "cudnn", "--trace", target) == 5
    assert not target.exists()


def test_a_failure_gives_its_reason_and_exits_1(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = probe.record

    def failing(step: Step, *arguments: Any) -> int:
        if step.case.attention == "vanilla":
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return record(step, *arguments)

    monkeypatch.setattr(probe, "record", failing)
    assert repshift("profile", "--model", model, "--variant", "vanilla,flash", "--steps", "1") == 1
    shown = capsys.readouterr().out
    assert "failed: out of memory: tried to allocate 2 GiB" in shown and "attention ran on" in shown


def test_variants_are_named_by_what_tells_them_apart(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--variant", "flash,flash+repshift", "--keep", "0.5,0.8", "--layers", "1", "--steps", "1")
    assert repshift("profile", "--model", model, *options, "--csv", "-") == 0
    names = {row["variant"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert names == {"flash", "flash+repshift keep 0.5", "flash+repshift keep 0.8"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--by", "colour"], "--by: unknown view 'colour'; choose from part, layer, kernel, op"),
        (["--read", "absent.json"], "absent.json does not exist"),
        (["--read", "t.json", "--model", "vit_b"], "--read shows a stored trace and runs nothing; leave out --model"),
        (["--read", "t.json", "--trace", "u.json"], "leave out --trace"),
        (["--read", "t.json", "--profile", "quick"], "leave out --profile"),
        (["--trace", "a.json", "--summary", "a.json"], "--trace and --summary both write to a.json"),
        (["--summary", "a.csv", "--csv", "a.csv"], "--summary and --csv both write to a.csv"),
        (["--trace", "."], "it is a folder; name a file in it"),
        (["--model", "vitb"], "unknown model 'vitb'"),
        (["--keep", "2"], "--keep: 2 is outside (0, 1]"),
        (["--device", "cpu", "--memory-snapshot", "m.pickle"], "--memory-snapshot shows CUDA's allocator"),
    ],
)
def test_bad_input_exits_2_with_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert repshift("profile", *arguments) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert os.listdir(tmp_path) == []


def test_dry_run_lists_the_cases(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    assert repshift("profile", "--model", model, "--dry-run", "--trace", "t.json") == 0
    assert "3 cases to measure, 0 refused" in capsys.readouterr().out
    assert [f for f in sorted(os.listdir(tmp_path)) if f != "__pycache__"] == before


@pytest.mark.slow
def test_an_interruption_leaves_no_file(model: str, tmp_path: Path) -> None:
    """Ctrl-C while it records: 130, one line, neither a trace nor anything temporary."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    command = [sys.executable, "-m", "repshift_cli", "profile", "--model", model, "--steps", "20", "--trace", "t.json"]
    path = os.pathsep.join([str(Path(repshift_cli.__file__).parent.parent), str(Path(tiny.__file__).parent)])
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": path}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while process.poll() is None and not any(temporary.glob("repshift-*/*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (130, "", "\ninterrupted; no trace was written\n")
    assert not (tmp_path / "t.json").exists() and os.listdir(temporary) == []


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_cuda(tmp_path: Path) -> ProfileRun:
    found, _ = two_variants(tmp_path)
    return found


def rendered(profile: ProfileRun, width: int = 200, **views: Any) -> str:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        table.render(document_of(replace(profile, options=views)), out)
    return out.getvalue()


def cells(profile: ProfileRun, sheet: int, column: str, **views: Any) -> list[str]:
    found = profile_sheets(replace(profile, options=views))[sheet]
    return [cell.text for cell in next(c for c in found.columns if c.title == column).cells]


def test_by_part_adds_up_to_the_step(on_cuda: ProfileRun) -> None:
    names = cells(on_cuda, 1, "part")
    assert names == [
        *(p for p in annotations.PARTS if p not in (annotations.CONVOLUTION, annotations.MIXER)),
        "other",
        "wait",
        "idle",
        "step",
    ]
    device = [float(t) for t in cells(on_cuda, 1, "device ms")]
    assert sum(device[:-1]) == pytest.approx(device[-1], rel=0.02)
    host = [float(t) for t in cells(on_cuda, 1, "host ms") if t != "–"]
    assert sum(host[:-1]) == pytest.approx(host[-1], rel=0.02)
    assert cells(on_cuda, 1, "vs flash ms")[names.index("score")] == "+0.005"


def test_by_layer_shows_the_selection_beside_what_is_won(on_cuda: ProfileRun) -> None:
    assert cells(on_cuda, 1, "block", by="layer") == ["1", "2", "outside", "all"]
    assert cells(on_cuda, 1, "selection ms", by="layer") == ["0.028", "–", "–", "0.028"]
    assert cells(on_cuda, 1, "won so far ms", by="layer") == ["−0.028", "−0.028", "−0.028", "−0.028"]
    assert cells(on_cuda, 1, "tokens", by="layer") == ["197", "119", "–", "–"]


def test_by_kernel_and_by_op(on_cuda: ProfileRun) -> None:
    assert cells(on_cuda, 0, "kernel", by="kernel")[0] == "sm90_xmma_gemm_bf16"
    assert cells(on_cuda, 0, "calls", by="kernel") == ["4", "2", "2"]
    assert cells(on_cuda, 0, "device ms", by="op") == ["0.260", "0.120", "0.020"]


def test_the_difference_names_what_is_new(on_cuda: ProfileRun) -> None:
    text = rendered(on_cuda, by="part", diff=True)
    assert "flash → flash+repshift" in text
    assert "kernels: 3 new, 0 gone" in text and "per step: kernels 8 → 11, launches 8 → 11" in text
    assert text.count("flash+repshift: host-bound: the device idles 57% of the step") == 1


def test_a_pass_under_other_conditions_gives_no_verdict(on_cuda: ProfileRun) -> None:
    assert "pruning does not pay here: the selection costs 0.028 ms" in rendered(on_cuda)
    flash, pruned = on_cuda.breakdowns
    slower = [
        replace(p, device_ms=(p.device_ms or 0) * (1 if p.part in annotations.SELECTION else 1.3)) for p in pruned.parts
    ]
    text = rendered(replace(on_cuda, breakdowns=(flash, replace(pruned, parts=tuple(slower)))))
    assert "no verdict on pruning: the blocks up to the first cut, alike in both, took +30% time" in text


def test_pruning_that_pays_says_from_where_and_up_to_which_ratio(on_cuda: ProfileRun) -> None:
    flash, pruned = on_cuda.breakdowns
    faster = [replace(p, device_ms=(p.device_ms or 0) * (0.6 if p.layer == 2 else 1)) for p in pruned.parts]
    text = rendered(replace(on_cuda, breakdowns=(flash, replace(pruned, parts=tuple(faster)))))
    assert "the selection costs 0.028 ms, paid for from block 2 on; 0.052 ms of device time are won" in text
    assert "break-even: at these layers pruning pays up to keep 0.85" in text


def test_a_graph_says_why_it_has_no_parts(tmp_path: Path, on_cuda: ProfileRun) -> None:
    out = cuda_trace.Writer()
    out.host("user_annotation", "ProfilerStep#1", 0, 400)
    out.host("cuda_runtime", "cudaGraphLaunch", 10, 5, correlation=9)
    out.kernel("gemm", 50, 200, 9)
    (tmp_path / "g.json").write_text(json.dumps({"traceEvents": out.events}))
    given = replace(case(attention="flash"), device="cuda:0", execution="graph")
    graph, _ = digest.digest(Breakdown("flash graph", given), tmp_path / "g.json")
    text = rendered(replace(on_cuda, breakdowns=(graph,)), by="part")
    assert "flash · CUDA graph" in text and "shown by kernel, for a CUDA graph replays kernels without" in text
    assert "1 kernels and 1 launches per step" in text


def test_a_foreign_trace_is_shown_by_kernel_and_by_op(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [e for e in cuda_trace.trace()["traceEvents"] if not e["name"].startswith("repshift/")]
    (tmp_path / "theirs.json").write_text(json.dumps(events))
    assert repshift("profile", "--read", tmp_path / "theirs.json") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("theirs.json\n") and "sm90_xmma_gemm_bf16" in shown
    assert "shown by kernel, for the trace has no ranges of repshift" in shown and "repshift bench" not in shown
    assert repshift("profile", "--read", tmp_path / "theirs.json", "--by", "op") == 0
    assert "addmm" in capsys.readouterr().out


def test_a_stored_trace_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(cuda_trace.trace()))
    code = (
        "import sys; from repshift_cli.cli import run\n"
        "code = run(['profile', '--read', 't.json'], False)\n"
        "sys.exit(code or ' '.join({'torch', 'transformers', 'numpy'} & set(sys.modules)) or None)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(repshift_cli.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("by", ["part", "layer", "kernel", "op"])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_their_width(on_cuda: ProfileRun, by: str, width: int) -> None:
    text = rendered(on_cuda, width, by=by, diff=True)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "selection costs" in " ".join(text.split())


def test_long_kernel_names_keep_both_ends() -> None:
    name = "void at::native::(anonymous namespace)::" + "long_" * 20 + "<float, CUDAFunctor_add>(int)"
    short = readable(name)
    assert len(short) == 60 and short.startswith("long_") and short.endswith("Functor_add>(int)") and "…" in short
    assert readable("aten::addmm") == "addmm"


def test_markdown_and_csv_of_a_profile(on_cuda: ProfileRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.json"
    store.write_text(path, to_json(on_cuda))
    assert repshift("show", path, "--markdown", "-") == 0
    assert "| score | 0.005 |" in capsys.readouterr().out
    assert repshift("show", path, "--by", "kernel", "--csv", "-") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert (rows[0]["variant"], rows[0]["calls"], rows[0]["ms"]) == ("flash", "4", "0.26")
    assert repshift("show", path, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "profile"


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_published_schema_is_the_one_that_holds() -> None:
    """After a change: repshift profile --schema > repshift_cli/records/profile.schema.json"""
    published = Path(repshift_cli.__file__).parent / "records" / "profile.schema.json"
    assert json.loads(published.read_text()) == profile_schema()


def test_a_profile_is_no_run_and_a_run_no_profile(on_cuda: ProfileRun, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    store.write_text(path, to_json(on_cuda))
    with pytest.raises(UsageError, match="is a profile, no run file"):
        store.load(path)
    assert store.load_any(path) == on_cuda
    assert on_cuda.machine is not None
    store.create(path, Run(on_cuda.machine, {}))
    assert isinstance(store.load_any(path), Run)
    assert repshift("show", path, "--by", "op") == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [({"schema": 99}, "has schema version 99"), ({"breakdowns": 3}, "is a damaged profile: profile.breakdowns")],
)
def test_a_damaged_profile(on_cuda: ProfileRun, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(to_plain(on_cuda) | change))
    with pytest.raises(UsageError, match=words):
        store.load_any(tmp_path / "p.json")
