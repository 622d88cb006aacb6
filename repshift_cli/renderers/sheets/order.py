"""The one order of columns: what a table shows first, what a narrow one keeps, how CSV sorts its columns."""

from __future__ import annotations

from collections.abc import Iterable

HEADLINES = (
    "speedup_vs_flash",
    "speedup_vs_unpruned",
    "speedup_vs_sdpa",
    "speedup_vs_vanilla",
    "speedup_vs_eager",
    "speedup_vs_decode",
    "latency",
    "tflops",
    "share_of_compute",
    "keep",
    "layers",
    "fidelity_top1",
    "fidelity_cosine",
    "fidelity_kl",
    "tokens",
    "err_own",
    "err_full",
    "time_vs_oracle",
)
"""What a table is read for, most wanted first: metrics by name, and what a row was asked for. Medians among them show
their interval in the cell, the others the figure alone (CSV has the interval)."""

OTHERS = (
    "throughput",
    "fidelity_kl_each",
    "fidelity_top1_each",
    "top1",
    "top5",
    "probe_top1",
    "knn_top1",
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "text_recall_at_1",
    "text_recall_at_5",
    "text_recall_at_10",
    "spearman",
    "next_token_loss",
    "perplexity",
    "next_token_top1",
    "choice",
    "pareto",
    "samples",
    "hbm",
    "macs",
    "kv_cache",
    "share_of_bandwidth",
    "tflops_of_full",
    "hbm_share_of_peak",
    "arithmetic_intensity",
    "memory_peak_allocated",
    "kernels",
    "energy",
    "hbm_modelled",
    "compile_time",
    "graph_breaks",
    "memory_peak_above_resting",
    "memory_resting",
    "memory_peak_reserved",
    "memory_process",
    "memory_card",
    "hbm_modelled_read",
    "hbm_modelled_written",
    "hbm_read",
    "hbm_written",
    "hbm_modelled_over_measured",
    "kv_cache_tokens",
    "fidelity_inputs",
    "operators",
    "device_busy",
    "bytes_by_formula",
    "ceiling_tflops",
    "ceiling_bandwidth",
    "latency_throttled",
    "energy_uncertainty",
    "samples_per_joule",
    "sm_clock",
    "memory_clock",
    "temperature",
    "power",
    "clocks_event_reasons",
    "cpu_time",
    "cpu_lost",
    "cpu_process",
    "cpu_waited",
    "cpu_steal",
    "cpu_throttled",
    "cpu_pressure",
    "cpu_runnable",
    "cpu_threads",
    "cpu_cores",
)
"""What follows them; a metric that stands in neither list comes after all of these."""

HEADLINE_RANKS = 20
"""Headlines are ranked from 1 to below this, the others from here on."""
UNKNOWN = HEADLINE_RANKS + len(OTHERS)
LAST = UNKNOWN + 1

_RANKS = {name: rank for rank, name in enumerate(HEADLINES, start=1)}
_RANKS |= {name: rank for rank, name in enumerate(OTHERS, start=HEADLINE_RANKS)}


def rank_of(name: str) -> int:
    """Where the column of that metric stands among all: the smaller, the more it is wanted."""
    return _RANKS.get(name, UNKNOWN)


ROWS = ("variant", "keep", "layers", "removal", "tokens", "execution", "kernel", "status")
"""The columns that are no metric, beside the options of methods."""


def known() -> tuple[str, ...]:
    """The names of all columns that are known here."""
    return (*ROWS, *HEADLINES, *OTHERS)


def meant(word: str, names: Iterable[str]) -> list[str]:
    """The names that a word means: itself, else those that end with it, as `kl` and `vs flash` do."""
    name = "_".join(word.lower().split())
    return [n for n in names if n == name] or [n for n in names if n.endswith(f"_{name}")]


def is_headline(name: str) -> bool:
    """Whether it is what a table is read for."""
    return name in HEADLINES
