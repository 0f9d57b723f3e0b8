"""Files of random small graphs at random widths load, run, and compute what was simulated."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import Net, bind, cpu, feeds_for, rewritten, run

from qtool.calibration import MinMax
from qtool.emitters import emit_qdq, packing
from qtool.pipeline.stages import make_grids, make_plan
from qtool.quant.bit_widths import Bits, Widths
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.simulation.ort_kernels import ExactKernels
from qtool.verification.captured_outputs import with_outputs
from qtool.weights import SCHEMES

BLOCKS = ("conv", "depthwise", "residual", "branches", "max_pool", "average_pool", "leaky", "gate")


def block(net: Net, kind: str, x: str, channels: int) -> tuple[str, int]:
    """One block behind ``x``; its value and channels."""
    if kind == "conv":
        return net.add("Relu", net.conv(x, channels, channels + 3)), channels + 3
    if kind == "depthwise":
        y = net.conv(x, channels, channels, group=channels)
        return net.add("Clip", y, net.const(0.0), net.const(6.0)), channels
    if kind == "residual":
        y = net.conv(net.add("Relu", net.conv(x, channels, 5)), 5, channels, k=1)
        return net.add("Add", x, y), channels
    if kind == "branches":
        left, right = (net.add("Relu", net.conv(x, channels, 4, k=k)) for k in (1, 3))
        return net.add("Concat", left, right, axis=1), 8
    if kind == "max_pool":
        return net.add("MaxPool", x, kernel_shape=[2, 2]), channels
    if kind == "average_pool":
        return net.add("AveragePool", x, kernel_shape=[2, 2]), channels
    if kind == "leaky":
        return net.add("LeakyRelu", net.conv(x, channels, channels), alpha=0.1), channels
    s = net.conv(net.add("GlobalAveragePool", x), channels, channels, k=1)
    return net.add("Mul", x, net.add("Sigmoid", s)), channels


@st.composite
def nets(draw) -> Net:
    """A classifier of one to four blocks."""
    net = Net(21, 10, seed=draw(st.integers(0, 9)))
    x, channels = net.conv(net.input("x", "N", 3, 12, 12), 3, draw(st.integers(1, 9))), 0
    channels = net.constants[-1].dims[0]
    for kind in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4)):
        x, channels = block(net, kind, x, channels)
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    classes = draw(st.integers(1, 7))
    y = net.add("Gemm", x, net.weight(classes, channels), net.weight(classes), transB=1, out="y")
    return net.output(y)


widths = st.builds(Widths, st.integers(1, 8), st.integers(2, 8))


def planned(net: Net, data) -> tuple[ir.Model, QuantPlan]:
    """The plan of a net with drawn widths for every layer."""
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model)
    layers = [n.name for n in model.graph if n.op_type in ("Conv", "Gemm")]
    drawn = {name: data.draw(widths) for name in layers if data.draw(st.booleans())}
    bits = Bits(*data.draw(widths), layers=drawn)
    scheme = SCHEMES[data.draw(st.sampled_from(sorted(SCHEMES)))]()
    plan = make_plan(model, cpu(), bits, "net")
    return model, freeze(
        model, make_grids(model, plan, [feeds_for(model)], MinMax(), scheme, threads=1)
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(nets(), st.data())
def test_a_file_of_any_widths_computes_its_plan(net, data):
    model, plan = planned(net, data)
    forms = sorted(data.draw(st.sets(st.sampled_from(["int4", "bytes", "base3", "scales"]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "NODE", 0)
        packed = emit_qdq(model, plan, replace(cpu(), packing=tuple(forms)))
    plain = emit_qdq(model, plan, replace(cpu(), packing=()))
    feeds = feeds_for(model, seed=3)
    names = [v.name for n in packed.graph for v in n.outputs if v.name.endswith("_quantized")]
    codes = {name.removesuffix("_quantized"): name for name in names}
    watched = [codes[s.output] for s in plan.sites.values() if s.output in codes]
    inputs = [codes[v] for s in plan.sites.values() for v in s.inputs if v in codes]
    seen, same = (
        run(with_outputs(m, list(dict.fromkeys([*watched, *inputs, "y"]))), feeds)
        for m in (packed, plain)
    )
    for name, array in same.items():
        np.testing.assert_array_equal(seen[name], array)
    values = {k.removesuffix("_quantized"): v for k, v in seen.items() if k != "y"}
    kernels = ExactKernels(model, plan)
    compared = 0
    for site in plan.sites.values():
        if site.output in values and all(v in values or v in plan.codes for v in site.inputs):
            output = kernels.site(site, values).numpy()
            np.testing.assert_array_equal(output, values[site.output].astype(np.float32))
            compared += 1
    assert compared
