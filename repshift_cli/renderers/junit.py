"""JUnit: one test case per gated metric of a case; a regression is a failure, what stayed open is skipped, with why."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import TextIO

from repshift_cli.analysis.comparison import Lonely
from repshift_cli.gate.verdict import FAIL, INCONCLUSIVE, Outcome, in_words
from repshift_cli.records import printable_line
from repshift_cli.records.labels import labels
from repshift_cli.renderers import Document

TAKES = ("gate",)
SUFFIX = ".xml"


def render(document: Document, out: TextIO) -> None:
    """Write the suite, for GitLab, Jenkins and whatever else reads JUnit's XML."""
    outcome: Outcome = document.content
    called = labels([f.case for f in outcome.findings] + [one.case for one in outcome.lonely])
    names = {case: printable_line(name) for case, name in called.items()}
    failures = sum(f.verdict == FAIL for f in outcome.judged) + len(outcome.broken)
    skipped = sum(f.verdict == INCONCLUSIVE for f in outcome.judged)
    count = str(len(outcome.judged) + len(outcome.broken))
    numbers = {"tests": count, "failures": str(failures), "skipped": str(skipped), "errors": "0"}
    suites = ET.Element("testsuites", numbers)
    suite = ET.SubElement(suites, "testsuite", {"name": "repshift gate", **numbers})
    for f in outcome.judged:
        test = ET.SubElement(
            suite, "testcase", {"classname": names[f.case], "name": printable_line(f.metric), "time": "0"}
        )
        text = printable_line(in_words(f, names[f.case]) + (f"; {f.reason}" if f.reason else ""))
        if f.verdict in (FAIL, INCONCLUSIVE):
            ET.SubElement(test, "failure" if f.verdict == FAIL else "skipped", {"message": text})
        else:
            ET.SubElement(test, "system-out").text = text
    for one in outcome.broken:
        _broken(suite, one, names[one.case])
    ET.indent(suites)
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n")


def _broken(suite: ET.Element, one: Lonely, name: str) -> None:
    test = ET.SubElement(suite, "testcase", {"classname": name, "name": "runs", "time": "0"})
    ET.SubElement(test, "failure", {"message": printable_line(one.reason)})
