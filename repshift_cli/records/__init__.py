"""What passes between the rooms: frozen records. Standard library only.

Everything that a run file holds is a dataclass of `run` or `case`; what stands in `subject` lives in memory only and
never reaches the disk.
"""

from repshift_cli.records.case import (
    DTYPES,
    EXECUTIONS,
    METHODS_WITHOUT_PRUNING,
    OPERATIONS,
    OPERATORS,
    REMOVALS,
    WITHOUT_ATTENTION,
    Case,
    Keep,
    Value,
    keep_text,
    names_of,
    option_order,
    written,
)
from repshift_cli.records.errors import CaseBroken, RepshiftError, Unbuildable, UsageError
from repshift_cli.records.option import Option
from repshift_cli.records.run import SCHEMA_VERSION, Calibration, Machine, Measurement, Metric, Output, Record, Run
from repshift_cli.records.subject import Facts, Offers, Progress, Site, Step, Subject, call
from repshift_cli.records.text import one_line, printable, printable_line, visible
from repshift_cli.records.tokens import (
    dropped_share,
    keeps_of,
    kept,
    left,
    lines_left,
    protection,
    removals,
    shares_of,
    tokens_along,
)

__all__ = [
    "DTYPES",
    "EXECUTIONS",
    "METHODS_WITHOUT_PRUNING",
    "OPERATIONS",
    "OPERATORS",
    "REMOVALS",
    "SCHEMA_VERSION",
    "WITHOUT_ATTENTION",
    "Calibration",
    "Case",
    "CaseBroken",
    "Facts",
    "Keep",
    "Machine",
    "Measurement",
    "Metric",
    "Offers",
    "Option",
    "Output",
    "Progress",
    "Record",
    "RepshiftError",
    "Run",
    "Site",
    "Step",
    "Subject",
    "Unbuildable",
    "UsageError",
    "Value",
    "call",
    "dropped_share",
    "keep_text",
    "keeps_of",
    "kept",
    "left",
    "lines_left",
    "names_of",
    "one_line",
    "option_order",
    "printable",
    "printable_line",
    "protection",
    "removals",
    "shares_of",
    "tokens_along",
    "visible",
    "written",
]
