"""Rows of the latency table: the baseline, the warnings, what gates are compared with."""

import pytest
from full_report import FULL, changed

from qtool.errors import RecipeError
from qtool.pipeline.latency.measure import _fastest, _notes
from qtool.recipe.sections.latency import Latency as LatencySection
from qtool.report.gates import Measured, check_gates
from qtool.report.latency_schema import Latency, RemoteMachine, RuntimeLatency
from qtool.report.render import render

ROWS = [
    RuntimeLatency(runtime="onnxruntime", version="1.31", threads=1, batch=1, float_ms=4.0,
                   quantized_ms=2.0, runs=50),
    RuntimeLatency(runtime="openvino", threads=1, batch=1, float_ms=1.0, quantized_ms=3.0, runs=50),
    RuntimeLatency(runtime="onnxruntime", threads=2, batch=1, float_ms=4.0, quantized_ms=2.0),
    RuntimeLatency(runtime="openvino", threads=2, batch=1, float_ms=5.0,
                   reason="quantized file: no kernel for Round"),
    RuntimeLatency(runtime="openvino", threads=4, batch=1, reason="float file: no memory"),
]  # fmt: skip
MACHINE = RemoteMachine(name="ssh:pi", cpu="Cortex-A72", cores=4, python="3.11")


def latency(**changes) -> Latency:
    more = {"runtimes": ROWS, "fastest": list(_fastest(ROWS)), **changes}
    return Latency(**FULL["latency"], **more)


def test_the_fastest_float_runtime_is_the_baseline():
    first, second = _fastest(ROWS)
    assert (first.threads, first.batch) == (1, 1)
    assert (first.float_runtime, first.float_ms) == ("openvino", 1.0)
    assert (first.quantized_runtime, first.quantized_ms) == ("onnxruntime", 2.0)
    assert first.speedup == 0.5  # not the 2.0 that its own runtime shows
    assert (second.threads, second.speedup) == (2, 2.0)


def test_what_cannot_run_and_what_gains_nothing_is_a_warning():
    assert _notes(latency()) == [
        "WARNING: openvino cannot run the quantized file: no kernel for Round",
        "WARNING: openvino cannot run the float file: no memory",
        "WARNING: no time gained at threads 1, batch 1: the file takes 2 ms in onnxruntime, the "
        "float model 1 ms in openvino",
    ]


@pytest.mark.parametrize(("machine", "expected"), [(None, 1.0), (MACHINE, 2.0)])
def test_gates_are_compared_with_the_machine_of_the_recipe(machine, expected):
    measured = Measured(latency=latency(machine=machine))
    (gate,) = check_gates({"max_latency_ms": 1.5}, measured)
    assert (gate.value, gate.passed) == (expected, expected <= 1.5)


@pytest.mark.parametrize("format", ["terminal", "markdown", "html"])
def test_every_format_shows_the_rows_and_the_baseline(format):
    report = changed(latency=latency(machine=MACHINE).model_dump())
    text = " ".join(render(report, format, width=200).split())
    for part in (
        "Latency by runtime on ssh:pi: Cortex-A72, 4 cores",
        "onnxruntime 1.31",
        "no kernel for Round",
        "1 thread, batch 1: fastest float openvino, 1.00 ms; fastest quantized onnxruntime, "
        "2.00 ms, 2.00x slower",
    ):
        assert part in text
    assert "Latency by runtime" not in render(changed(), format)


def test_one_value_stands_for_a_list_of_it():
    section = LatencySection.model_validate({"runtimes": "openvino", "threads": 2, "batch": 8})
    assert (section.runtimes, section.threads, section.batch) == (("openvino",), (2,), (8,))
    assert section.host is None
    assert LatencySection.model_validate({"runner": "ssh:me@pi.local"}).host == "me@pi.local"


@pytest.mark.parametrize(
    "section",
    [
        {"runner": "pi"},
        {"runner": "ssh:-oProxyCommand=sh"},
        {"runner": "ssh:pi; sh"},
        {"python": "sh"},
        {"python": "python3 -c"},
        {"python": "-python3"},
        {"threads": []},
        {"batch": [0]},
    ],
)
def test_what_ssh_or_a_shell_could_act_on_is_refused(section):
    with pytest.raises(ValueError, match=next(iter(section))):
        LatencySection.model_validate(section)


def test_a_gate_without_a_time_is_refused():
    rows = [ROWS[-1]]
    measured = Measured(latency=latency(machine=MACHINE, runtimes=rows, fastest=None))
    with pytest.raises(RecipeError, match=r"gates\.min_speedup"):
        check_gates({"min_speedup": 1.0}, measured)
