"""Makes a run file small enough to be committed: fewer metrics, and whole numbers as such.

    python tests/real/slim.py RUN OUT METRIC...

writes to OUT what RUN says of these metrics (`latency`, `err_full`): of those of `repshift eval` (`probe_top1`,
`next_token_loss`) the answer to every sample, the differences to the unpruned model and to random dropping, and the
p-values adjusted by Holm too. It is a run file like any other.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from repshift_cli.records import Run, store
from repshift_cli.records.json_codec import to_plain

KINDS = ("", "_vs_unpruned", "_vs_random", "_p_holm")


def slim(run: Run, metrics: list[str]) -> Run:
    """The run with these metrics only, and how many samples they are of, its records as they were planned."""
    wanted = {"samples", *(metric + kind for metric in metrics for kind in KINDS)}
    place = {case: i for i, case in enumerate(run.planned)}
    records = tuple(
        dataclasses.replace(r, measurements=tuple(m for m in r.measurements if m.metric in wanted))
        for r in sorted(run.records, key=lambda r: place[r.case])
    )
    options = dict(run.options)
    if "evaluation" in options:
        options["evaluation"] = {**options["evaluation"], "metrics": metrics}
    return dataclasses.replace(run, planned=(), records=records, options=options)


def short(value: Any) -> Any:
    """JSON values with whole numbers as integers, others to six digits."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.6g}")
    if isinstance(value, list):
        return [short(v) for v in value]
    if isinstance(value, dict):
        return {name: short(v) for name, v in value.items()}
    return value


def main() -> None:
    """Write OUT, a line for each record."""
    source, out, *metrics = sys.argv[1:]
    plain = short(to_plain(slim(store.load(Path(source)), metrics)))
    lines = [json.dumps(record, separators=(",", ":")) for record in plain.pop("records")]
    head = json.dumps(plain, separators=(",", ":")).removesuffix("}")
    text = f'{head},"records":[\n' + ",\n".join(lines) + "\n]}\n"
    Path(out).write_text(text, encoding="utf-8")
    print(f"{out}: {len(lines)} records, {len(text) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
