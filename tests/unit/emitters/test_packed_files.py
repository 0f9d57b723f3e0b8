"""Packed weights in emitted files: the forms by opset, names, the same kernels and bits."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import Net, bind, cpu, feeds_for, make_grids, make_plan, optimized, rewritten, run

from qtool.calibration import MinMax
from qtool.emitters import emit_qdq, save_model
from qtool.emitters.qoperator import to_operators
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.targets.loader import load_target
from qtool.weights import SCHEMES


def net(opset: int = 21) -> Net:
    made = Net(opset, 13 if opset >= 25 else 10)
    x = made.add("Relu", made.conv(made.input("x", "N", 3, 8, 8), 3, 48, name="first"))
    x = made.add("Relu", made.conv(x, 48, 64, name="second"))
    x = made.add("Flatten", made.add("GlobalAveragePool", x))
    y = made.add("Gemm", x, made.weight(90, 64), made.weight(90), transB=1, out="y", name="last")
    return made.output(y)


def planned(bits: Bits, scheme: str = "uniform", opset: int = 21):
    model = net(opset).model()
    bind(model, feeds_for(model))
    rewritten(model)
    plan = make_plan(model, cpu(), bits)
    grids = make_grids(model, plan, [feeds_for(model)], MinMax(), SCHEMES[scheme]())
    return model, freeze(model, grids)


def dtypes(model: ir.Model) -> Counter[str]:
    held = model.graph.initializers.items()
    return Counter(str(v.dtype) for name, v in held if "_packed" in name)


@pytest.mark.parametrize(
    ("opset", "weights", "want"),
    [
        (21, 4, {"INT4": 3}),
        (21, 2, {"UINT8": 3}),
        (25, 2, {"INT2": 3}),
        (25, 3, {"INT4": 1, "UINT2": 2, "UINT8": 2}),
        (18, 4, {"UINT8": 3}),
        (21, 8, {}),
    ],
)
def test_the_form_follows_the_opset(opset, weights, want, tmp_path):
    model, plan = planned(Bits(weights, 8), opset=opset)
    emitted = emit_qdq(model, plan, cpu())
    assert dtypes(emitted) == want
    assert emitted.opset_imports[""] == opset
    save_model(emitted, tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)


WIDTHS = [(b, "uniform") for b in range(2, 9)]
WIDTHS += [(1, "binary"), (2, "ternary"), (3, "kmeans"), (4, "kmeans"), (6, "kmeans")]


@pytest.mark.parametrize(("bits", "scheme"), WIDTHS)
@pytest.mark.parametrize("opset", [21, 25])
def test_the_same_kernels_and_the_same_bits(bits, scheme, opset, tmp_path):
    model, plan = planned(Bits(bits, 8), scheme, opset)
    packed = emit_qdq(model, plan, cpu())
    plain = emit_qdq(model, plan, replace(cpu(), packing=()))
    ran = [[n.op_type for n in optimized(m, tmp_path).graph] for m in (packed, plain)]
    assert ran[0] == ran[1]
    assert ran[0].count("QLinearConv") == 2 and ran[0].count("QGemm") == 1
    folded = optimized(packed, tmp_path).graph.initializers
    assert not any("_packed" in name or name.startswith("codes_") for name in folded)
    feeds = feeds_for(model, seed=3)
    np.testing.assert_array_equal(run(packed, feeds)["y"], run(plain, feeds)["y"])
    operators = to_operators(packed.clone(), plan)
    np.testing.assert_array_equal(run(operators, feeds)["y"], run(plain, feeds)["y"])
    if bits < 8:
        sizes = [len(ir.to_proto(m).SerializeToString()) for m in (packed, plain)]
        assert sizes[0] < sizes[1]


@pytest.mark.parametrize(("bits", "scheme"), WIDTHS)
def test_shifted_zero_points_go_with_every_form(bits, scheme):
    """What `onnxruntime-cpu-amx` does to large convolutions, done to every one."""
    model, plan = planned(Bits(bits, 8), scheme)
    target = load_target("onnxruntime-cpu-amx")
    rule = replace(target.weight_zero_point, min_k=1, min_macs=0)
    shifted = emit_qdq(model, plan, replace(target, weight_zero_point=rule))
    plain = emit_qdq(model, plan, replace(cpu(), packing=()))
    zeros = [v.const_value.numpy() for n, v in shifted.graph.initializers.items() if "zero" in n]
    assert sum(z.ndim == 1 and z.size > 1 and bool((z == -1).all()) for z in zeros) == 2
    feeds = feeds_for(model, seed=3)
    np.testing.assert_array_equal(run(shifted, feeds)["y"], run(plain, feeds)["y"])
    if bits in (4, 2) and scheme == "uniform":
        assert dtypes(shifted) == dtypes(emit_qdq(model, plan, cpu()))  # no code is lost


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("grain", ["channel", "block"])
def test_weights_alone_become_floats_at_load(bits, grain, tmp_path):
    model, plan = planned(Bits(bits, None, granularity=grain, block=16))
    emitted = emit_qdq(model, plan, cpu())
    assert not plan.sites and len(plan.weight_only) == 3
    ran = Counter(n.op_type for n in optimized(emitted, tmp_path).graph)
    floats = Counter(n.op_type for n in optimized(model, tmp_path).graph)
    assert ran == floats
    plain = emit_qdq(model, plan, replace(cpu(), packing=()))
    feeds = feeds_for(model, seed=3)
    np.testing.assert_array_equal(run(emitted, feeds)["y"], run(plain, feeds)["y"])


def test_names_of_the_codes_stay():
    model, plan = planned(Bits(4, 8))
    emitted = emit_qdq(model, plan, cpu())
    made = {v.name: v for n in emitted.graph for v in n.outputs}
    for site in plan.sites.values():
        if site.weight:
            codes = made[f"{site.weight}_quantized"]
            assert codes.dtype == ir.DataType.INT8
            assert codes.shape == plan.codes[site.weight].shape
    names = [n.name for n in emitted.graph]
    assert len(set(names)) == len(names) and all(names)
