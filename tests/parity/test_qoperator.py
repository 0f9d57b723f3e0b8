"""QOperator files against QDQ files of the same plan: every code equal, the same kernels."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from exact_layers import TARGET, feeds_of, frozen_plan, random_scales, tied_scales
from models import BUILDERS, Net, bind, feeds_for, optimized, quantized, rewritten, run, sqnr
from test_exact import BETWEEN, CASES, PASSES

from qtool.emitters import emit_qdq
from qtool.emitters.qoperator import to_operators
from qtool.errors import UnsupportedError
from qtool.quant.bit_widths import Bits
from qtool.quant.primitives import QuantParams, QuantSpec
from qtool.runtime.ort_options import session_options
from qtool.verification.captured_outputs import capturable_values, with_outputs

ALL = {**CASES, **{f"{name} between convs": c for name, c in BETWEEN.items()}, **PASSES}


def codes_of(emitted, plan, feeds) -> dict[str, np.ndarray]:
    names = capturable_values(emitted, plan)
    file = ir.to_proto(with_outputs(emitted, names)).SerializeToString()
    session = ort.InferenceSession(file, session_options(1))
    return dict(zip(names, session.run(list(names), feeds), strict=True))


@pytest.mark.parametrize("case", ALL.values(), ids=ALL)
def test_no_code_differs_from_qdq(case):
    for seed, scales in enumerate((random_scales, tied_scales, tied_scales)):
        rng = np.random.default_rng(seed)
        model = case.model()
        plan = frozen_plan(case, model, scales(case, rng), rng)
        feeds = feeds_of(case, plan, rng)
        pairs = emit_qdq(model, plan, TARGET)
        want = codes_of(pairs, plan, feeds)
        made = to_operators(pairs, plan)
        left = Counter(n.op_type for n in made.graph)
        assert left["QuantizeLinear"] == len(case.shapes)  # at the inputs, nowhere else
        assert left["DequantizeLinear"] <= (
            case.outputs if not case.quantized_output or case.convs else 0
        )
        got = codes_of(made, plan, feeds)
        assert want.keys() == got.keys()
        for name, array in want.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def both(net: Net, bits: Bits | None = None):
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model)
    pairs, plan = quantized(model, bits)
    return pairs, to_operators(pairs.clone(), plan), plan


@pytest.mark.parametrize("name", BUILDERS)
def test_a_network_runs_the_same_kernels(name, tmp_path):
    net = BUILDERS[name]()
    pairs, made, _ = both(net)
    feeds = feeds_for(pairs, seed=7)
    want, got = run(pairs, feeds), run(made, feeds)
    assert list(want) == list(got)
    for key, array in want.items():
        np.testing.assert_array_equal(got[key], array)
    kernels = [Counter(n.op_type for n in optimized(m, tmp_path).graph) for m in (pairs, made)]
    assert kernels[0] == kernels[1]
    assert sqnr(run(net.proto(), feeds)["y"], got["y"]) > 30
    for initializer in made.graph.initializers.values():
        assert initializer.uses(), f"{initializer.name} is read by nothing"


@pytest.mark.parametrize("limits", [(None, None), (-0.5, 1.0), (0.0, 0.25)])
def test_an_activation_that_its_grid_does_not_replace_acts_on_codes(limits):
    """A Relu or Clip in front of a grid that reaches further stays, as a Clip on codes."""
    net = Net()
    x = net.conv(net.input("x", "N", 4, 8, 8), 4, 8)
    bounds = [net.const(v) for v in limits if v is not None]
    x = net.add("Clip" if bounds else "Relu", x, *bounds, out="a")
    net.output(net.conv(x, 8, 4, out="y"))
    model = net.model()
    _, plan = quantized(model)
    wide = QuantParams(QuantSpec(8, False, False), np.float32(0.03), np.int32(120))
    plan = replace(plan, grids={**plan.grids, plan.grid_of["a"]: wide})
    pairs = emit_qdq(model, plan, TARGET)
    made = to_operators(pairs.clone(), plan)
    kinds = Counter(n.op_type for n in made.graph)
    assert kinds == Counter(["QuantizeLinear", *["QLinearConv"] * 2, "Clip", "DequantizeLinear"])
    feeds = feeds_for(model, seed=5)
    want, got = (codes_of(m, plan, feeds) for m in (pairs, made))
    # In the QDQ file the first convolution and its activation stay float: sums may round otherwise.
    assert np.mean(want["a_quantized"] != got["a_quantized"]) <= 1e-3
    low, high = (0.0, np.inf) if limits[0] is None else limits
    values = (got["a_quantized"].astype(float) - 120) * 0.03
    assert values.min() >= low - 0.015 and values.max() <= high + 0.015
    assert values.min() <= low + 0.03 and len(np.unique(values)) > 5


def test_codes_wider_than_8_bits_are_refused():
    net = Net()
    net.output(net.conv(net.input("x", "N", 4, 8, 8), 4, 8, name="layer", out="y"))
    pairs, plan = quantized(net.model())
    zeros = [v for name, v in pairs.graph.initializers.items() if name == "x_zero_point"]
    zeros[0].const_value = ir.tensor(np.uint16(3), name="x_zero_point")
    for value in pairs.graph.all_nodes():
        for out in value.outputs:
            if out.name == "x_quantized":
                out.type = ir.TensorType(ir.DataType.UINT16)
    with pytest.raises(UnsupportedError, match=r'"layer" works on uint16 codes.*use format qdq'):
        to_operators(pairs, plan)
