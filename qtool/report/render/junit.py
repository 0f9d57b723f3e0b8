"""The report for CI servers: JUnit XML, one test case per gate."""

from collections.abc import Mapping
from xml.etree import ElementTree

import qtool.report.render.formatting as formatting
from qtool.report.gates import gate_number, parity_gates
from qtool.report.report import Gate, Report
from qtool.report.verdict import verdict


def junit(runs: Mapping[str, Report]) -> str:
    """Return one test suite per run, with one test case per gate, the parity gates among them.

    A failed gate is one failure, with its limit and value. Where no gate failed, a test case for
    the verdict follows: skipped where it is not judged.
    """
    root = ElementTree.Element("testsuites", name="qtool")
    for name, report in runs.items():
        _suite(root, formatting.clean(name), report)
    suites = list(root)
    for key in ("tests", "failures", "skipped"):
        root.set(key, str(sum(int(suite.get(key, "0")) for suite in suites)))
    root.set("errors", "0")
    ElementTree.indent(root)
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _suite(root: ElementTree.Element, name: str, report: Report) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=name)
    properties = ElementTree.SubElement(suite, "properties")
    for key, value in _facts(report).items():
        ElementTree.SubElement(properties, "property", name=key, value=formatting.clean(value))
    gates = [*report.gates, *parity_gates(report)]
    for gate in gates:
        _gate_case(suite, name, gate)
    result = verdict(report)
    reason = formatting.clean(result.reason)
    if all(gate.passed for gate in gates):
        case = ElementTree.SubElement(suite, "testcase", classname=name, name="verdict", time="0")
        if result.status == "failed":
            ElementTree.SubElement(case, "failure", type=result.status, message=reason)
        elif result.status == "not judged":
            ElementTree.SubElement(case, "skipped", message=reason)
    ElementTree.SubElement(suite, "system-out").text = f"{result.status}: {reason}"
    suite.set("tests", str(len(suite.findall("testcase"))))
    for key, tag in (("failures", "failure"), ("skipped", "skipped")):
        suite.set(key, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("errors", "0")
    suite.set("time", f"{sum(stage.seconds for stage in report.stages):.3f}")


def _gate_case(suite: ElementTree.Element, name: str, gate: Gate) -> None:
    label = formatting.clean(gate.name)
    case = ElementTree.SubElement(suite, "testcase", classname=name, name=label, time="0")
    value = gate_number(gate.name, gate.value, ".6g")
    message = f"{label}: value {value}, limit {formatting.limit(gate)}"
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
