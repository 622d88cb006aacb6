"""What is measured stays what it was: the exact figures of tiny cases of every family, against stored ones.

`data/figures.json` holds, for one `bench` per family, what two runs of the same code must agree on: tokens along the
depth, MACs, fidelity, operators, modelled bytes and the places that every cut keeps. It also names the versions that it
was stored with, for these decide what can be compared:

- tokens and MACs always;
- fidelity (in fp32 to one part in ten thousand, for CPUs round differently) and the places kept, where transformers, or
  timm for its models, has the same major.minor version: others may draw other random weights;
- operators, memory and modelled bytes, exactly, where torch has too: others may compute by other operators.

A change that is meant to change figures stores them anew, and its diff shows which:

    python tests/test_unchanged_figures.py --write           # or: --write vit llama
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import one_thread  # noqa: F401

from repshift_cli import cli

STORED = Path(__file__).parent / "data" / "figures.json"

Figures = dict[str, dict[str, Any]]
"""Case -> its figures, as JSON holds them."""


# --- the cases --------------------------------------------------------------------------------------------------------

PAPER = {"keep": 0.8, "layers": [[1, 4, 7]]}
HALF = {"keep": 0.5, "layers": [[2]]}
ALL_SCORES = {
    "operation": ["mlp", "attention", "block"],
    "distance": ["l2", "l1", "cosine"],
    "form": ["paper", "update"],
}


def variants(*methods: str) -> list[str]:
    return ["flash", *(f"flash+{method}" for method in methods)]


ALL_METHODS = variants("repshift", "lowest", "random", "stride", "oracle", "norm", "dash")

OWN = """
import tiny
import torch

def model():
    torch.manual_seed(0)
    return tiny.roughen(tiny.PlainTransformer(depth=7)), (tiny.pixels(2, 12, tiny.WIDTH).float(),)
"""


def own_model(folder: Path) -> str:
    (folder / "model_of_figures.py").write_text(OWN)
    return "model_of_figures:model"


def llama_checkpoint(folder: Path) -> str:
    """A small Llama with grouped keys and values, saved: the aliases begin at 160 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    return "hf:llama"


@dataclass(frozen=True)
class Family:
    """One `bench`: its model (or what makes it in a folder, and gives its name) and the other options of a profile."""

    model: str | Callable[[Path], str]
    options: dict[str, Any]
    draws: str = "transformers"
    """The package that decides which random weights are drawn."""
    rounding: float = 1e-4
    """The share by which fidelity may differ from one CPU to another."""


SMALL = {"image-size": 64, "batch": 2}
FAMILIES = {
    "vit": Family("vit_t", {**SMALL, **HALF, "variant": ["vanilla", *ALL_METHODS]}),
    "vit_protected": Family(
        "vit_t",
        {**SMALL, **PAPER, "seed": 3, "distance": "cosine", "protect": "first:2,last:1", "variant": variants("lowest")},
    ),
    "vit_bf16": Family(
        "vit_t", {**SMALL, **PAPER, "dtype": "bf16", "variant": variants("stride", "oracle")}, rounding=0.2
    ),
    "deit": Family(
        "deit_t_distilled", {**SMALL, **PAPER, "variant": variants("repshift", "random", "stride", "norm", "dash")}
    ),
    "dinov2": Family("dinov2_s_reg", {**HALF, "image-size": 56, "variant": variants("repshift", "norm")}),
    "umt": Family("umt_b", {**HALF, "image-size": 32, "frames": 2, "variant": variants("repshift")}),
    "minilm": Family(
        "minilm",
        {**PAPER, "layers": [[1, 4]], "tokens": 12, "batch": 3, "variant": variants("repshift", "lowest", "stride")},
    ),
    "llama": Family(
        llama_checkpoint,
        {**PAPER, "tokens": 16, "batch": 2, "variant": variants("repshift", "oracle", "dash"), "protect": "first:1"},
    ),
    "resnet": Family(
        "resnet18",
        {**SMALL, **HALF, "layers": [[1, 2]], "removal": ["line", "token"], "variant": variants("repshift", "stride")},
    ),
    "vim": Family("vim_t", {**HALF, "image-size": 48, "variant": variants("repshift")}),
    "mamba": Family("mamba_130m", {**HALF, "tokens": 5, "variant": variants("repshift")}),
    "timm": Family("timm:vit_tiny_patch16_224", {**SMALL, **HALF, "variant": variants("repshift")}, "timm"),
    "own": Family(own_model, {**HALF, "variant": ["vanilla", *ALL_METHODS]}),
    "own_scores": Family(own_model, {**PAPER, **ALL_SCORES, "variant": variants("repshift")}),
}
DRAWN = "random"
"""The method whose places differ from forward to forward; its fidelity is seeded."""


# --- what comes out ---------------------------------------------------------------------------------------------------

FIDELITY = ("fidelity_kl", "fidelity_cosine")
COUNTED = ("operators", "hbm_modelled", "hbm_modelled_read", "hbm_modelled_written")
"""Peak memory is none of them: what libraries allocate once counts for whichever forward comes first."""
NAMED = ("attention", "pruning", "keep", "layers", "operation", "distance", "form", "removal", "protect")
"""What tells the cases of a family apart, as a run file calls it."""


def name_of(case: dict[str, Any]) -> str:
    told = case | dict(case["options"])
    values = {name: told[name] for name in NAMED if told.get(name) not in (None, [], "none", 1.0)}
    return " ".join(f"{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in values.items()) or "none"


@contextlib.contextmanager
def places_kept() -> Iterator[dict[str, list[Any]]]:
    """Within it the places that each case's cuts keep are noted, as they are in its first forward; by its name.

    No command prints them, so that this, alone in this file, reaches into the package: a cut of tokens is made by
    `chosen(subject, method, case, seen, length, ...)`, which gives the rows that stay; a cut of a grid by
    `picked(grid, places, size)`, within the hooks that `hooks(site, method, case, ...)` sets.
    """
    from repshift_cli.reduction.engine import grid as grid_cuts
    from repshift_cli.reduction.engine import hooks as token_cuts

    noted: dict[str, list[Any]] = {}
    chosen, picked, hooks = token_cuts.chosen, grid_cuts.picked, grid_cuts.hooks
    active: list[Any] = []

    def note(case: Any, places: Any) -> None:
        kept = noted.setdefault(name_of({k: list(v) if isinstance(v, tuple) else v for k, v in vars(case).items()}), [])
        if len(kept) < len(case.layers) and case.pruning != DRAWN:
            kept.append(places.tolist())

    def noting_chosen(*given: Any) -> Any:
        cut, roles = chosen(*given)
        _, _, case, _, length = given[:5]
        note(case, cut.rows(torch.arange(length).view(1, -1, 1)).squeeze(-1))
        return cut, roles

    def noting_hooks(site: Any, method: Any, case: Any, *rest: Any) -> Any:
        active[:] = [case]
        return hooks(site, method, case, *rest)

    def noting_picked(grid: Any, places: Any, size: Any) -> Any:
        note(active[0], places)
        return picked(grid, places, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_cuts, "chosen", noting_chosen)
        patch.setattr(grid_cuts, "picked", noting_picked)
        patch.setattr(grid_cuts, "hooks", noting_hooks)
        yield noted


def measured(family: Family, folder: Path) -> tuple[Figures, dict[str, str]]:
    """The figures of every case, by the public command in an empty folder; and the versions it names."""
    was, path = Path.cwd(), list(sys.path)
    os.chdir(folder)
    sys.path[:0] = [str(folder), str(Path(__file__).parent)]
    try:
        model = family.model if isinstance(family.model, str) else family.model(folder)
        options = {"title": "figures", "model": model, "device": "cpu", "hbm": "model", "budget": 0.001}
        lines = (f"{name} = {json.dumps(value)}\n" for name, value in {**options, **family.options}.items())
        Path("figures.toml").write_text("".join(lines))
        with places_kept() as places, contextlib.redirect_stdout(io.StringIO()) as out:
            code = cli.run(
                ["bench", "--profile", "figures.toml", "--rounds", "1", "--in-process", "--json", "-"], debug=True
            )
    finally:
        os.chdir(was)
        sys.path[:] = path
        sys.modules.pop("model_of_figures", None)
    assert code == 0, out.getvalue()
    run = json.loads(out.getvalue())
    records = {name_of(record["case"]): record for record in run["records"]}
    assert len(records) == len(run["records"]), "two cases have one name"
    return {name: _figures(record, places.get(name, [])) for name, record in records.items()}, run["machine"][
        "packages"
    ]


def _figures(record: dict[str, Any], places: list[Any]) -> dict[str, Any]:
    assert record["status"] == "ok", record["reason"]
    known = {m["metric"]: m["samples"][0] for m in record["measurements"] if m["samples"]}
    blocks = next(m["parts"]["block"] for m in record["measurements"] if m["metric"] == "hbm_modelled")
    return {
        "tokens": record["tokens"],
        "macs": known["macs"],
        "fidelity": {name: known[name] for name in FIDELITY if name in known},
        "kept": [_as_text(cut) for cut in places],
        "counted": {name: known[name] for name in COUNTED if name in known} | {"blocks": list(blocks.values())},
    }


def _as_text(cut: list[list[int]]) -> str:
    """The places that stay, sample by sample: `0 1 4 | 0 2 3`."""
    return " | ".join(" ".join(map(str, sample)) for sample in cut)


# --- the comparison ---------------------------------------------------------------------------------------------------


def differences(
    stored: Figures, found: Figures, draws_alike: bool, counts_alike: bool, rounding: float = 1e-4
) -> list[str]:
    """What of the stored figures is not found again, one line each."""
    wrong = [f"{name}: {'gone' if name in stored else 'new'}" for name in sorted(stored.keys() ^ found.keys())]
    for name in stored.keys() & found.keys():
        old, new = stored[name], found[name]
        compared = ["tokens", "macs", *["kept"] * draws_alike, *["counted"] * (draws_alike and counts_alike)]
        wrong += [f"{name}: {what} {old[what]} -> {new[what]}" for what in compared if old[what] != new[what]]
        if draws_alike and not _close(old["fidelity"], new["fidelity"], rounding):
            wrong.append(f"{name}: fidelity {old['fidelity']} -> {new['fidelity']}")
    return wrong


def _close(old: dict[str, float], new: dict[str, float], rounding: float) -> bool:
    """The smallest divergences are differences of fp32 numbers near 1, which carry about 1e-7 each."""
    return old.keys() == new.keys() and all(math.isclose(old[k], new[k], rel_tol=rounding, abs_tol=5e-7) for k in old)


def _alike(package: str, old: dict[str, str], new: dict[str, str]) -> bool:
    """The same major.minor version of a package."""
    return old[package].split(".")[:2] == new[package].split(".")[:2]


FIRST_VERDICT = "vit_protected"


@pytest.mark.parametrize(
    "name", [FIRST_VERDICT, *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES if n != FIRST_VERDICT)]
)
def test_figures_are_what_they_were(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    if importlib.util.find_spec(family.draws) is None:
        pytest.skip(f"the package {family.draws!r} is not installed")
    stored = json.loads(STORED.read_text())
    found, versions = measured(family, tmp_path)
    draws, counts = (_alike(p, stored["versions"], versions) for p in (family.draws, "torch"))
    wrong = differences(stored["families"][name], found, draws, counts, family.rounding)
    assert not wrong, "\n".join(wrong)


def test_the_stored_families_are_these() -> None:
    assert list(json.loads(STORED.read_text())["families"]) == list(FAMILIES)


def test_a_difference_is_seen() -> None:
    old: dict[str, Any] = {"tokens": [9, 5], "macs": 7.0, "fidelity": {"fidelity_kl": 0.01}, "kept": ["0 1"]}
    old["counted"] = {"operators": 3.0}
    for what, other in (("tokens", [9, 4]), ("macs", 8.0), ("kept", ["0 2"]), ("counted", {"operators": 4.0})):
        (line,) = differences({"a": old}, {"a": old | {what: other}}, True, True)
        assert line.startswith(f"a: {what}")
    off = {"a": old | {"fidelity": {"fidelity_kl": 0.01001}, "kept": [], "counted": {}}}
    assert len(differences({"a": old}, off, True, True)) == 3
    assert len(differences({"a": old}, off, True, False)) == 2
    assert differences({"a": old}, off, False, True) == []
    assert differences({"a": old}, {"b": old}, True, True) == ["a: gone", "b: new"]


# --- storing anew -----------------------------------------------------------------------------------------------------


def write(names: list[str]) -> None:
    """Store the figures of these families, or of all of them."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler chatters otherwise
    torch.set_num_threads(1)
    stored = json.loads(STORED.read_text()) if names else {"versions": {}, "families": {}}
    for name in names or FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            stored["families"][name], versions = measured(FAMILIES[name], Path(folder))
        used = ("torch", "transformers", "timm", "numpy")
        versions = {package: versions[package].partition("+")[0] for package in used}
        assert not names or versions == stored["versions"], "stored with other versions: write all of them"
        stored["versions"] = versions
    lines = [f'{{\n "versions": {json.dumps(stored["versions"])},\n "families": {{']
    for number, name in enumerate(FAMILIES):
        cases = ",\n".join(f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in stored["families"][name].items())
        lines.append(f"  {json.dumps(name)}: {{\n{cases}\n  }}{',' * (number < len(FAMILIES) - 1)}")
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text("\n".join([*lines, " }\n}\n"]))


if __name__ == "__main__":
    if sys.argv[1:2] != ["--write"]:
        sys.exit(f"usage: python {sys.argv[0]} --write [FAMILY...]")
    write(sys.argv[2:])
