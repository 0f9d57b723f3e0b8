"""A few of the zoo's constructs in every test run, all of them in the slow one."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.zoo import FILES, LEAST_DB, of_onnx, of_torch
from benchmarks.zoo_models import REFUSED
from benchmarks.zoo_torch import MODULES
from qtool.loading.pytorch.export import EXPORTERS

FAST = (
    "old_opset_7",
    "shared_weights",
    "captured_weights",
    "bfloat16",
    "preprocessing",
    "dfl_head",
    "spectrum_stream",
)
FAST_TORCH = ("several_inputs_and_outputs", "float16", "fixed_batch")
NOT_EXPORTED = {
    *(("tracing", name) for name in ("bilinear", "rms_norm", "branch")),
    ("torch.export", "scripted_loop"),
}
"""What torch itself cannot export in this way."""


def marked(names, fast):
    return [n if n in fast else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", marked(FILES, FAST))
def test_an_onnx_file(name, tmp_path):
    found = of_onnx(name, tmp_path)
    assert not found.failed, found.verdict
    if name in REFUSED:
        assert found.verdict.startswith("exit 3: there is nothing to quantize")
    else:
        assert found.db is not None and found.db >= LEAST_DB


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", marked(MODULES, FAST_TORCH))
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torch_module(name, exporter, tmp_path):
    found = of_torch(name, exporter, tmp_path)
    assert (found is None) == ((exporter, name) in NOT_EXPORTED)
    if found is not None:
        assert not found.failed, found.verdict
        assert found.db is not None and found.db >= LEAST_DB
