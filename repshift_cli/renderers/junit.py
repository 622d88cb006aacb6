"""JUnit: one test case per gated metric of a case; a regression is a failure, what stayed open is skipped, with why."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TextIO

from repshift_cli.gate.verdict import FAIL, INCONCLUSIVE, Outcome, told
from repshift_cli.records import printable_line
from repshift_cli.renderers import Document

TAKES = ("gate",)
SUFFIX = ".xml"


def render(document: Document, out: TextIO) -> None:
    """Write the suite, for GitLab, Jenkins and whatever else reads JUnit's XML."""
    outcome: Outcome = document.content
    names = {case: printable_line(name) for case, name in outcome.names.items()}
    failures = sum(f.verdict == FAIL for f in outcome.judged) + len(outcome.broken)
    skipped = sum(f.verdict == INCONCLUSIVE for f in outcome.judged) + len(outcome.unsteady)
    count = str(len(outcome.judged) + len(outcome.broken) + len(outcome.unsteady))
    numbers = {"tests": count, "failures": str(failures), "skipped": str(skipped), "errors": "0"}
    suites = ET.Element("testsuites", numbers)
    suite = ET.SubElement(suites, "testsuite", {"name": "repshift gate", **numbers})
    for f in outcome.judged:
        test = ET.SubElement(
            suite, "testcase", {"classname": names[f.case], "name": printable_line(f.metric), "time": "0"}
        )
        text = printable_line(told(f, names[f.case]))
        if f.verdict in (FAIL, INCONCLUSIVE):
            ET.SubElement(test, "failure" if f.verdict == FAIL else "skipped", {"message": text})
        else:
            ET.SubElement(test, "system-out").text = text
    for kind, cases in (("failure", outcome.broken), ("skipped", outcome.unsteady)):
        for one in cases:
            test = ET.SubElement(suite, "testcase", {"classname": names[one.case], "name": "runs", "time": "0"})
            ET.SubElement(test, kind, {"message": printable_line(one.reason)})
    ET.indent(suites)
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n")
