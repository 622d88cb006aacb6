"""What a run file holds, from `Run` down to `Measurement`, and the history of its schema."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from repshift_cli.records.case import Case

SCHEMA_VERSION = 4
"""Version of the run file. History: 1 (0.1.0) the first; 2 adds `calibrations` of a run, `provider` and `parts` of a
measurement; 3 adds `protect`, `removal` and `length` of a case, `paths` of a record; 4 has `options` of a case, where
`operation`, `distance` and `form` were fields of their own, and `gateable`, `detail` and `reference` of a measurement,
where `rank` and the reason said so. Older files are read: what they lack has its default, and what has moved is moved
(`case.from_older`, `run.measurement_from_older`, `run.record_from_older`)."""


@dataclass(frozen=True)
class Measurement:
    """One quantity of one case; it describes itself, so that a renderer needs to know no metric by name.

    `samples` are the raw values in `unit`, in the order taken, `per_round` of them in each round. No value: no
    `samples`, and `reason` says why; it is never 0 for "not measured".

    `statistic` names how a single figure comes from the samples: `median` (times: of the rounds' medians),
    `hodges-lehmann` (paired ratios, see `stats`), `value` (one exact number). `source` labels its origin:
    `timed`, `counted`, `modelled`, `counter`, `sampled`, `allocator`, `driver`, `compared`. `provider` names the
    instrument where several could have measured it (`cupti`, `ncu`, `gpm`). `parts` splits an exact figure, each way on
    its own: {"operator": {"aten.addmm": 6e6, ...}, "block": {"1": 2e6, ...}}.

    `gateable` says whether a gate may judge it, `detail` that it stands in JSON and CSV only, never in a table, and
    `reference` that there is no figure because the case is itself what others are compared with.
    """

    metric: str
    label: str
    unit: str
    better: str
    statistic: str
    source: str
    samples: tuple[float, ...] = ()
    per_round: int = 1
    reason: str | None = None
    provider: str | None = None
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    gateable: bool = True
    detail: bool = False
    reference: bool = False

    def __post_init__(self) -> None:
        if not self.samples and not self.reason:
            raise ValueError(f"{self.metric}: no samples and no reason")


def measurement_from_older(plain: dict[str, Any]) -> dict[str, Any]:
    """The JSON value of a measurement as this schema has it, from that of schema 1 to 3; this schema's own as it is.

    A `rank` of 100 or more meant that it is no column and, if timed, never judged; a reason that begins with
    `reference`, that the case is what others are compared with.
    """
    if "rank" not in plain:
        return plain
    detail = isinstance(plain["rank"], int) and plain["rank"] >= 100
    flags = {
        "gateable": not detail or plain.get("statistic") == "value",
        "detail": detail,
        "reference": str(plain.get("reason")).startswith("reference"),
    }
    return {name: value for name, value in plain.items() if name != "rank"} | flags


@dataclass(frozen=True)
class Metric:
    """One quantity: what measurements of it share, and a sentence on what it is.

    `name` is what files, thresholds and options call it, `label` what a table's heading says; the rest is as in
    `Measurement`.
    """

    name: str
    label: str
    unit: str
    better: str
    statistic: str
    source: str
    description: str
    gateable: bool = True
    detail: bool = False
    provider: str | None = None

    def of(self, *samples: float, per_round: int = 1) -> Measurement:
        """The measurement with these samples."""
        return Measurement(**self._shared, samples=tuple(float(s) for s in samples), per_round=per_round)

    def missing(self, reason: str, reference: bool = False) -> Measurement:
        """The measurement that could not be taken, with the reason; or that is itself the `reference` of others."""
        return Measurement(**self._shared, reason=reason, reference=reference)

    def counting(self, units: str) -> Metric:
        """The metric with its label in the units that a model's samples are called by: `img/s` for `samples/s`."""
        return replace(self, label=self.label.replace("samples", units))

    @property
    def _shared(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name not in ("name", "description")}
        return own | {"metric": self.name}


@dataclass(frozen=True)
class Calibration:
    """What a counter of HBM traffic made of known bytes, by which it is believed or not.

    `read` and `written` are counted / known (None where only the sum is told: `total`), `doubled` the bytes of twice
    the work over those of once (2 is right), `empty` what was counted where nearly nothing ran, in bytes. `key` names
    the machine, the driver and the versions that it holds for.
    """

    provider: str
    label: str
    passed: bool
    reason: str | None = None
    read: float | None = None
    written: float | None = None
    total: float | None = None
    doubled: float | None = None
    empty: float | None = None
    key: str = ""
    created: str = ""


@dataclass(frozen=True)
class Output:
    """What a forward put out, so that another revision's can be held against it without keeping the numbers.

    `words` names the tensors (`float32 (2, 1000)`), `finite` is the share of their numbers that are, `sketch` what
    `benchmark.outputs` makes of all of them: sketches of alike outputs are apart as far as the outputs are.
    """

    words: str
    finite: float
    sketch: tuple[float, ...]


@dataclass(frozen=True)
class Record:
    """What became of one case: `ok`, `skipped` (impossible here, never tried) or `failed` (tried), with the reason.

    `tokens` are the tokens, prefix included, at the input and after each cut: (197, 119). `kernel` is what attention
    was seen to run on; `paths` how the kernels of pruning ran (`score:triton`); `stopped_by` is `precision` or
    `budget`; `warmup` counts the untimed forwards. `deaths` is how often a process died at this case, or had to be
    ended; `stack` the Python stack that it had then. `place` names the one of several workers that measured it, by the
    machine and the GPU that it had (`local:1`, `node7:0`); `Run.machines` describes it. `throttled` says that hardware
    slowed the device down while it was timed. `output` is what a model put out when the timed rounds were over.
    """

    case: Case
    status: str
    reason: str | None = None
    tokens: tuple[int, ...] = ()
    kernel: str | None = None
    paths: tuple[str, ...] = ()
    rounds: int = 0
    warmup: int = 0
    stopped_by: str | None = None
    measurements: tuple[Measurement, ...] = ()
    warnings: tuple[str, ...] = ()
    unfit: str | None = None
    """Why its times allow no verdict (a busy machine), or None."""
    deaths: int = 0
    stack: str | None = None
    place: str | None = None
    throttled: bool = False
    output: Output | None = None

    def measurement(self, metric: str) -> Measurement | None:
        """The measurement of that name, or None."""
        return next((m for m in self.measurements if m.metric == metric), None)


def record_from_older(plain: dict[str, Any]) -> dict[str, Any]:
    """The JSON value of a record as this schema has it: before, a warning alone said that hardware throttled."""
    if "throttled" in plain or not isinstance(plain.get("warnings"), list):
        return plain
    return plain | {"throttled": any("throttle" in str(text) for text in plain["warnings"])}


@dataclass(frozen=True)
class Machine:
    """The computer of a run. A field that could not be read is None and `missing` says why, by the field's name."""

    device: str
    device_name: str
    uuid: str | None = None
    driver: str | None = None
    cuda: str | None = None
    capability: str | None = None
    device_memory: int | None = None
    sm_clock_max: int | None = None
    memory_clock_max: int | None = None
    peak_bandwidth: str | None = None
    cpu: str | None = None
    cores: int | None = None
    threads: int | None = None
    memory: int | None = None
    system: str | None = None
    python: str | None = None
    commit: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run file: where it ran, what was asked, what came out."""

    machine: Machine
    options: dict[str, Any]
    planned: tuple[Case, ...] = ()
    records: tuple[Record, ...] = ()
    warnings: tuple[str, ...] = ()
    created: str = ""
    tool: str = ""
    schema: int = SCHEMA_VERSION
    calibrations: tuple[Calibration, ...] = ()
    machines: dict[str, Machine] = field(default_factory=dict)
    """Of several, by the `place` of the records made there; a record without one was made on `machine`."""

    def machine_of(self, record: Record) -> Machine:
        """The machine that a record was made on."""
        return self.machines.get(record.place or "", self.machine)

    @property
    def measured_on(self) -> list[Machine]:
        """The machines that its records were made on, each once; its own where it has no records."""
        places = dict.fromkeys(record.place or "" for record in self.records if record.status == "ok")
        found: list[Machine] = []
        for machine in (self.machines.get(place, self.machine) for place in places):
            if machine not in found:
                found.append(machine)
        return found or [self.machine]
