"""The walls between the rooms hold: who may import what, read from the source of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "repshift_cli"
TENSORS = {"torch", "numpy", "PIL", "transformers", "safetensors"}
WALLS: dict[str, set[str]] = {
    "records": set(),
    "plain": {"records"},
    "installed": set(),
    "stats": {"records"},
    "catalog": {"records", "installed"},
    "axes": {"records"},
    "workloads": {"records", "axes"},
    "plan": {"records", "axes"},
    "store": {"records", "plain", "breakdown"},
    "ranges": set(),
    "breakdown": {"records"},
    "attribution": {"breakdown", "ranges"},
    "balance": {"records", "breakdown", "ranges"},
    "traces": {"records", "store", "ranges", "attribution"},
    "profiler": {"records", "plain", "breakdown", "attribution", "traces"},
    "thresholds": {"records"},
    "findings": {"records", "stats"},
    "history": {"records", "stats", "findings", "installed", "numpy", "ruptures"},
    "gate": {"records", "stats", "findings"},
    "noise": {"records", "plain", "store"},
    "sides": {"records", "store", "gate"},
    "duel": {"records", "stats", "store", "findings", "gate", "sides", "thresholds"},
    "machine": {"records", "catalog", "torch", "pynvml"},
    "runner": {"records", "stats", "lanes"},
    "lanes": {"records", "stats", "conditions"},
    "conditions": {"records"},
    "counters": {"records", "plain", "machine", "catalog", "counters"},
    "kernels": {"records", "kernels", "triton", "mamba_ssm", *TENSORS},
    "models": {"records", "kernels", "models", "av", "timm", "torchvision", *TENSORS},
    "attention": {"records", "installed", "kernels", "attention", "flash_attn", "flash_attn_interface", *TENSORS},
    "pruning": {"records", "kernels", "ranges", "pruning", *TENSORS},
    "probes": {"records", "kernels", "ranges", "probes", "pynvml", *TENSORS},
    "renderers": {
        "records",
        "plain",
        "stats",
        "findings",
        "gate",
        "history",
        "breakdown",
        "balance",
        "ranges",
        "renderers",
        "rich",
    },
}
"""What each room may import besides the standard library and the package's own version."""

FREE = {"worker", "commands", "cli", "assemble", "executions", "__init__", "__main__"}
"""The rooms that assemble the others may import anything."""


def imports(source: str, package: str) -> set[str]:
    """The top names of what a file imports anywhere in it; `repshift_cli.x.y` is `x`, the bare package nothing."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: -node.level + 1 or None]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names |= {f"{module}.{a.name}" for a in node.names} if module == "repshift_cli" else {module}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    own = {n.split(".")[1] for n in names if n.startswith("repshift_cli.") and not n.endswith(".__version__")}
    return own | {n.split(".")[0] for n in names if n.split(".")[0] != "repshift_cli"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(path)
    if room in FREE:
        return
    package = ".".join(("repshift_cli", *path.relative_to(PACKAGE).parts[:-1]))
    found = imports(path.read_text(encoding="utf-8"), package) - set(sys.stdlib_module_names)
    assert found <= WALLS[room], f"{room} may not import {sorted(found - WALLS[room])}"


@pytest.mark.parametrize(
    ("line", "package", "name"),
    [
        ("import torch.nn as nn", "repshift_cli", "torch"),
        ("def f():\n    from torch import nn", "repshift_cli", "torch"),
        ("from repshift_cli import stats", "repshift_cli", "stats"),
        ("from repshift_cli.models.vit import build", "repshift_cli.probes", "models"),
        ("from . import stats", "repshift_cli", "stats"),
        ("from ..models import vit", "repshift_cli.probes", "models"),
        ("import importlib\nimportlib.import_module('torch')", "repshift_cli", "torch"),
    ],
)
def test_every_way_to_import_is_seen(line: str, package: str, name: str) -> None:
    assert name in imports(line, package)


def test_light_rooms_bring_no_torch() -> None:
    light = {"records", "stats", "catalog", "axes", "plan", "store", "machine", "renderers", "runner"}
    light |= {"ranges", "breakdown", "attribution", "balance", "traces", "profiler"}
    light |= {"gate", "findings", "duel", "conditions", "counters"}
    modules = [".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts) for p in FILES if room_of(p) in light]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "sys.exit(' '.join({'torch', 'transformers', 'pynvml'} & set(sys.modules)) or None)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
