"""Every operator of the table passes ONNX's own node tests, but for the exceptions listed."""

import dataclasses

import conformance
import pytest

from qtool.runtime.executor import OPS

TESTED = sorted({case.op for case in conformance.cases()})


@pytest.mark.parametrize("op", TESTED)
def test_an_operator_conforms(op):
    failed, healed = [], []
    for case in conformance.cases():
        if case.op == op:
            why, listed = conformance.failure(case), case.name in conformance.EXCEPTIONS
            if why and not listed:
                failed.append(f"{case.name}: {why}")
            if listed and not why:
                healed.append(case.name)
    assert not failed, "\n".join(failed)
    assert not healed, f"these pass now; take them off the list of exceptions: {healed}"


def test_exceptions_are_few_and_real():
    names = {case.name for case in conformance.cases()}
    assert conformance.EXCEPTIONS.keys() <= names
    assert len(conformance.EXCEPTIONS) <= 0.05 * len(names)


def test_a_wrong_result_is_seen():
    case = next(c for c in conformance.cases() if c.name == "test_relu")
    ((inputs, (expected,)),) = case.data_sets
    wrong = dataclasses.replace(case, data_sets=[(inputs, (expected + 1,))])
    assert "values" in (conformance.failure(wrong) or "")


def test_most_of_the_table_is_covered():
    assert len(TESTED) >= 150
    assert set(OPS) - set(TESTED) <= {"GlobalLpPool"}


def test_the_page_of_operators_is_current():
    page = conformance.DOCS.read_text()
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == sorted(OPS)
