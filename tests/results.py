"""The tables of profiles/baselines/README.md, from the run files that lie beside it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import inspection_tables
import own_scores
import predictions
from accuracies import Told, summary
from operator_tables import operator_lengths
from rival_tables import fidelities, rivals
from stored import FOLDER, NOTHING, interval, pruned, run_of, value

from repshift_cli.analysis import stats
from repshift_cli.records import Case, Record, store
from repshift_cli.records.inspection import Inspection
from repshift_cli.renderers import document_of, markdown


def method(case: Case) -> str:
    """The method, with the form of the score where it has one."""
    form = case.option("form")
    return case.pruning + (f", {form}" if form else "")


def dinov2_photos() -> str:
    """Cosine and speed-up over flash: schedules down, methods across."""
    rows = pruned("cpu/dinov2-s-photos")
    return _schedules(rows, method, lambda r: f"{value(r, 'fidelity_cosine'):.3f} / {_faster(r)}")


def deit_methods() -> str:
    """Speed-up over flash and time against the oracle's: methods down."""
    lines = ["| method | over flash | time / oracle | HBM modelled |", "|---|---|---|---|"]
    for record in pruned("cpu/deit-s-methods"):
        modelled = f"{value(record, 'hbm_modelled') / 2**30:.3f} GiB"
        cells = (record.case.pruning, interval(record, "speedup_vs_flash", "x"), interval(record, "time_vs_oracle"))
        lines.append(f"| {' | '.join((*cells, modelled))} |")
    return "\n".join(lines)


def told_of(metric: str, places: int = 1) -> Told:
    """How an accuracy is shown; the published form of the score goes without saying."""
    return Told(metric, places, lambda record: method(record.case).removesuffix(", paper"))


def evaluated(name: str) -> list[Record]:
    """The records of an evaluation that drop tokens and could."""
    return [r for r in pruned(f"cpu/accuracy/{name}") if r.status == "ok"]


def accuracy(name: str, metric: str = "probe_top1", places: int = 1) -> Callable[[], str]:
    """The methods' ranking against random dropping; folded, every schedule."""

    def whole() -> str:
        told, rows = told_of(metric, places), evaluated(name)
        folded = f"<details><summary>Every schedule</summary>\n\n{told.schedules(rows)}\n\n</details>"
        return f"{told.ranking(rows)}\n\n{folded}"

    return on_device(whole, f"cpu/accuracy/{name}")


def compared() -> dict[str, tuple[Told, list[Record]]]:
    """All evaluations by label: how they are told, and their records."""
    return {
        "ViT, digits": (told_of("top1"), evaluated("digits")),
        "DINOv2-S, Fashion-MNIST": (told_of("probe_top1"), evaluated("dinov2-s-fashion")),
        "DINOv2-S, k-NN": (told_of("knn_top1"), evaluated("dinov2-s-fashion")),
        "MiniLM, spam": (told_of("probe_top1"), evaluated("minilm-spam")),
        "MiniLM, k-NN": (told_of("knn_top1"), evaluated("minilm-spam")),
        "SmolLM2, nats (less is better)": (told_of("next_token_loss", 2), evaluated("smollm2-grid")),
    }


def smollm2_prompts() -> str:
    """Same top-1, KL and speed-up over flash."""

    def cell(record: Record) -> str:
        same, kl = (value(record, m) for m in ("fidelity_top1", "fidelity_kl"))
        return f"{same:.0f}% / {kl:.2f} / {_faster(record)}"

    return _schedules(pruned("cpu/smollm2-prompts"), lambda case: case.pruning, cell)


def minilm_sentences() -> str:
    """Cosine of the sentences' embeddings."""
    rows = [r for r in pruned("cpu/minilm-sentences") if r.case.attention == "vanilla"]
    return _schedules(rows, lambda case: case.pruning, lambda r: f"{value(r, 'fidelity_cosine'):.3f}")


def vit_sizes() -> str:
    """Speed-up over flash: sizes down, keep ratios across."""
    rows = pruned("cpu/vit-t-sizes")
    keeps = sorted({r.case.keep for r in rows})
    lines = ["| tokens | " + " | ".join(f"keep {keep:g}" for keep in keeps) + " |", "|---|" + "---|" * len(keeps)]
    for tokens in sorted({r.tokens[0] for r in rows}):
        cells = {r.case.keep: _shown(r) for r in rows if r.tokens[0] == tokens}
        lines.append(f"| {tokens} | {' | '.join(cells[keep] for keep in keeps)} |")
    return "\n".join(lines)


def _schedules(rows: Sequence[Record], name: Callable[[Case], str], cell: Callable[[Record], str]) -> str:
    """Markdown, one row per schedule and one column per method."""
    methods = list(dict.fromkeys(name(r.case) for r in rows))
    cells = {(r.case.layers, r.case.keep, name(r.case)): cell(r) for r in rows}
    lines = ["| after block | keep | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    for layers, keep in sorted({key[:2] for key in cells}):
        row = [cells[layers, keep, method] for method in methods]
        lines.append(f"| {', '.join(map(str, layers))} | {keep:g} | {' | '.join(row)} |")
    return "\n".join(lines)


def _faster(record: Record) -> str:
    """The paired speed-up over flash, a dash where none was shown or the rounds were too few for an interval."""
    measurement = record.measurement("speedup_vs_flash")
    ratio = stats.estimate(measurement) if measurement else None
    return NOTHING if ratio is None or ratio.spans(1) else f"{ratio.value:.2f}x"


def _shown(record: Record) -> str:
    """The paired speed-up over flash with its interval, in the tool's words."""
    measurement = record.measurement("speedup_vs_flash")
    ratio = stats.estimate(measurement) if measurement else None
    assert ratio is not None and ratio.low is not None and ratio.high is not None
    return f"{'none shown' if ratio.spans(1) else f'{ratio.value:.2f}x'} ({ratio.low:.2f}–{ratio.high:.2f})"


def gpu() -> str:
    """Every run file of a GPU, as the tool's own Markdown, with the device's name; or what is to be done."""
    files = sorted(f for f in FOLDER.glob("*/*.json") if f.parent.name != "cpu" and _is_run(f))
    if not files:
        return (
            "No run of a GPU lies here yet: nothing on these pages about a GPU has been measured. "
            "`python tests/benchmarks/evidence.py --stage N --out profiles/baselines/GPU` makes the runs of stage N "
            "(`--dry-run` lists them), `python tests/generated.py --write` their tables."
        )
    return "\n\n".join(_of_device(file) for file in files)


def _is_run(file: Path) -> bool:
    return "records" in json.loads(file.read_text(encoding="utf-8"))


def _of_device(file: Path) -> str:
    run, name = store.load(file), file.relative_to(FOLDER)
    written = io.StringIO()
    markdown.render(document_of(run), written)
    return f"### {name.stem}, on {run.machine.device_name}\n\n{written.getvalue().strip()}\n\nRun: `{name}`."


def on_device(table: Callable[[], str], name: str) -> Callable[[], str]:
    """The table, and below it the device and the versions of the run that it is made of."""

    def whole() -> str:
        if not (FOLDER / f"{name}.json").exists():
            return "Not measured yet."
        run = run_of(name)
        versions = f"torch {run.machine.packages.get('torch')}, {run.created[:10]}"
        return f"{table()}\n\nOn {run.machine.device_name}, {versions}."

    return whole


def inspections() -> str:
    """By model and block: the default shift's correlations, and what half of the tokens costs over a random half."""
    heads = (
        "model",
        "block",
        "keep",
        "shift ~ importance",
        "shift ~ norm",
        "importance ~ norm",
        "one by one",
        "at once",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in ("dinov2-s", "digits", "minilm", "smollm2"):
        stored = store.load_any(FOLDER / "cpu" / "inspection" / f"{name}.json")
        assert isinstance(stored, Inspection)
        found = {q.name: dict(q.items()) for q in stored.answer("score").quantities}
        for (block,), sign in found["sign"].items():
            if sign is None or found["correlation"][block, "importance"] is None:
                continue
            along = [found["correlation"][block, "importance"], found["correlation"][block, "norm"]]
            along.append(found["importance_correlation"][block, "norm"])
            costs = [found["dropped_importance"][block,], found["halves"][block, "lower half"]]
            cells = [*(f"{v:+.2f}" for v in along if v is not None), *(f"{v:.2f}x" for v in costs if v is not None)]
            word = {1: "highest", -1: "lowest"}.get(int(sign), "neither")
            lines.append(f"| {' | '.join([name, block, word, *cells])} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "gpu": gpu,
    "inspections": inspections,
    "predictions": predictions.predictions,
    "signs": predictions.signs,
    "even-norms": predictions.even_norms,
    "cache-measured": inspection_tables.cache_measured,
    "cache-by-kind": inspection_tables.cache_by_kind,
    "dinov2-photos": on_device(dinov2_photos, "cpu/dinov2-s-photos"),
    "deit-methods": on_device(deit_methods, "cpu/deit-s-methods"),
    "deit-rivals": on_device(rivals("deit-s-rivals"), "cpu/deit-s-rivals"),
    "umt-rivals": on_device(rivals("umt-b-rivals"), "cpu/umt-b-rivals"),
    "dinov2-rivals": on_device(fidelities("cpu/dinov2-s-rivals"), "cpu/dinov2-s-rivals"),
    "minilm-rivals": on_device(fidelities("cpu/minilm-rivals"), "cpu/minilm-rivals"),
    "accuracies": lambda: summary(compared()),
    "digits": accuracy("digits", "top1"),
    "dinov2-fashion": accuracy("dinov2-s-fashion"),
    "dinov2-fashion-knn": accuracy("dinov2-s-fashion", "knn_top1"),
    "minilm-spam": accuracy("minilm-spam"),
    "minilm-spam-knn": accuracy("minilm-spam", "knn_top1"),
    "smollm2-grid": accuracy("smollm2-grid", "next_token_loss", 2),
    "smollm2-topics": accuracy("smollm2-topics", "next_token_loss", 2),
    "efficientnet-lite0": accuracy("efficientnet-lite0-imagenet", "top1"),
    "smollm2-topics-rivals": accuracy("smollm2-topics-rivals", "next_token_loss", 2),
    "vit-t-sizes": on_device(vit_sizes, "cpu/vit-t-sizes"),
    "smollm2-prompts": on_device(smollm2_prompts, "cpu/smollm2-prompts"),
    "minilm-sentences": on_device(minilm_sentences, "cpu/minilm-sentences"),
    **{f"own-scores-{study}": own_scores.table(study) for study in (*own_scores.MODELS, *own_scores.FRESH)},
    "operators-lengths": on_device(operator_lengths, "cpu/operators"),
}
