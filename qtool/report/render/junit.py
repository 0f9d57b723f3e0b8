"""The report for CI servers: JUnit XML, one test case per gate."""

from collections.abc import Mapping
from xml.etree import ElementTree

import qtool.report.render.formatting as formatting
from qtool.report.report import Gate, Report, parity_gates, verdict


def junit(runs: Mapping[str, Report]) -> str:
    """Return one test suite per run, one test case per gate and one for the run as a whole.

    A failed gate carries its limit and value; the parity gates are among them.
    """
    root = ElementTree.Element("testsuites", name="qtool")
    for name, report in runs.items():
        _suite(root, formatting.clean(name), report)
    suites = list(root)
    for key in ("tests", "failures"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    root.set("errors", "0")
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _suite(root: ElementTree.Element, name: str, report: Report) -> None:
    gates = [*report.gates, *parity_gates(report)]
    failures = sum(not gate.passed for gate in gates) + (not report.passed)
    suite = ElementTree.SubElement(
        root,
        "testsuite",
        name=name,
        tests=str(len(gates) + 1),
        failures=str(failures),
        errors="0",
        skipped="0",
        time=f"{sum(stage.seconds for stage in report.stages):.3f}",
    )
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _facts(report).items():
        ElementTree.SubElement(properties, "property", name=key, value=formatting.clean(value))
    for gate in gates:
        _case(suite, name, gate)
    level, sentence = verdict(report)
    case = ElementTree.SubElement(suite, "testcase", classname=name, name="verdict", time="0")
    if not report.passed:
        ElementTree.SubElement(case, "failure", type=level, message=formatting.clean(sentence))
    ElementTree.SubElement(case, "system-out").text = formatting.clean(f"{level}: {sentence}")


def _case(suite: ElementTree.Element, name: str, gate: Gate) -> None:
    label = formatting.clean(gate.name)
    case = ElementTree.SubElement(suite, "testcase", classname=name, name=label, time="0")
    message = f"{label}: value {gate.value:.6g}, limit {formatting.limit(gate)}"
    if not gate.passed:
        ElementTree.SubElement(case, "failure", type="gate", message=message).text = message
    ElementTree.SubElement(case, "system-out").text = message


def _facts(report: Report) -> dict[str, str]:
    return {
        "qtool": report.qtool,
        "command": report.command,
        "model": report.model.path,
        "model_sha256": report.model.sha256,
        "output_sha256": report.output.sha256,
    }
