"""The integer-only reference against ONNX Runtime: one op at a time, and small networks whole."""

import numpy as np
import pytest
import torch
from exact_layers import Case, Scales, draw, random_scales, tied_scales
from models import (
    BUILDERS,
    Net,
    bind,
    cpu,
    feeds_for,
    ops,
    optimized,
    quantized,
    rewritten,
    run,
)
from test_exact import BETWEEN, CASES, PASSES, WIDE
from torch.utils._python_dispatch import TorchDispatchMode

from qtool.annotation.annotator import annotate
from qtool.calibration import MinMax
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.emitters import emit_qdq
from qtool.errors import UnsupportedError
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.simulation.fixed_point import ROUNDINGS
from qtool.simulation.integer_kernels import BUILDERS as KERNELS
from qtool.simulation.integer_network import IntegerKernels, IntegerNetwork
from qtool.simulation.ort_kernels import OrtKernels
from qtool.targets.loader import load_target
from qtool.weights.grids import weight_grids
from qtool.weights.scale_constraints import constrain_plan_scales, request_scale_kind

KINDS = ("float", "fixed_point:16", "double_shift", "power_of_two")
SHIFTS = ("power_of_two", "double_shift")


def shift_scales(case: Case, rng: np.random.Generator) -> Scales:
    """Draw powers of two with any zero point: the ratios are shifts, and many values tie."""
    steps = [2.0 ** int(rng.integers(-7, -4)) for _ in range(len(case.shapes) + 1)]
    if case.op == "Mul":
        steps[-1] = 2.0 ** int(rng.integers(-4, 1))
    grids = [(s, int(rng.choice([0, 255, 128, rng.integers(256)]))) for s in steps]
    weight = steps[-1] / steps[0] * 2.0 ** int(rng.integers(-11, -8))
    return Scales(tuple(grids[:-1]), grids[-1], weight, vary=False)


def differences(case: Case, scales, count: int, kind: str = "float") -> tuple[int, int, int]:
    """Return codes that differ, the largest difference, and codes compared, over some draws."""
    off = largest = total = 0
    for seed in range(count):
        one = draw(
            case,
            scales(case, np.random.default_rng(seed)),
            seed,
            kernels_of=IntegerKernels,
            kind=kind,
        )
        for a, b in zip(one.runtime, one.exact, strict=True):
            if a.dtype.kind == "f":
                np.testing.assert_array_equal(a, b)
                continue
            apart = np.abs(a.astype(np.int64) - b)
            off, largest = off + np.count_nonzero(apart), max(largest, int(apart.max()))
            total += apart.size
    return off, largest, total


@pytest.mark.parametrize("scales", [random_scales, tied_scales])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_op_is_at_most_one_code_off(case, scales):
    off, largest, total = differences(case, scales, 4)
    assert largest <= 1
    # Real scales: a float32 product rounds where the integer one does not. Round decimals make
    # ties, which float32 errors decide; there only one code of difference is guaranteed.
    assert off <= (1e-3 if scales is random_scales else 0.2) * total


@pytest.mark.parametrize("case", BETWEEN.values(), ids=BETWEEN)
def test_channels_last_is_at_most_one_code_off(case):
    assert differences(case, random_scales, 2)[1] <= 1


@pytest.mark.parametrize("case", [*CASES.values(), *PASSES.values()], ids=[*CASES, *PASSES])
def test_shifts_are_exact(case):
    """Where all scales are powers of two the runtime's floats are exact too: no code differs."""
    assert differences(case, shift_scales, 6, "power_of_two")[0] == 0


@pytest.mark.parametrize("case", WIDE, ids=[case.op for case in WIDE])
def test_sums_near_2_to_the_27(case):
    scales = Scales(((0.01, 0),), (0.01, 0), 1e-6)
    assert differences(case, lambda *_: scales, 3)[1] <= 1


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_another_rounding_moves_ties_by_one(rounding):
    case = CASES["conv2d"]
    scales = shift_scales(case, np.random.default_rng(1))
    one = draw(
        case,
        scales,
        0,
        kind="power_of_two",
        kernels_of=lambda model, plan: IntegerKernels(model, plan, rounding),
    )
    apart = np.abs(one.runtime[0].astype(np.int64) - one.exact[0])
    assert apart.max() == (rounding != "half_even")


def test_every_kernel_of_the_target_has_an_integer_one():
    sites = {op for op, rule in cpu().ops.items() if rule.form != "same_grid"}
    assert set(KERNELS) == sites


class NoFloats(TorchDispatchMode):
    """Mode that fails when an operation reads or makes a float."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(part, torch.Tensor):
                assert not part.is_floating_point(), func
        return result


def planned(model, kind: str):
    """Annotated, calibrated by min-max, in the form of a scale kind, frozen."""
    plan = request_scale_kind(annotate(model, cpu(), Bits()), kind)
    batches = [feeds_for(model, seed=1)]
    stats = collect(model, observed_values(model, plan), batches, histograms=True, threads=1)
    plan = weight_grids(model, choose_grids(plan, stats, MinMax()))
    return freeze(model, constrain_plan_scales(model, plan))


WHOLE = sorted(set(BUILDERS) - {"transformer_mlp"})


def network(name: str, tmp_path):
    model = BUILDERS[name]().load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_network_runs_in_integers(name, kind, tmp_path):
    """From codes to codes without a float; outputs are the file's, or close to them."""
    model = network(name, tmp_path)
    plan = planned(model, kind)
    feeds = feeds_for(model, seed=9)
    whole = IntegerNetwork(model, plan)
    whole(feeds)  # kernels and tables are made at first use
    with NoFloats(), torch.inference_mode():
        codes = whole.run(_entry_codes(whole, feeds))
    assert {t.dtype for t in codes.values()} <= {torch.int32, torch.int64}
    assert set(codes) >= {s.output for s in plan.sites.values()}
    got, file = whole(feeds)["y"], run(emit_qdq(model, plan, cpu()), feeds)["y"]
    if kind in SHIFTS and name not in ("squeeze_excite",):
        np.testing.assert_array_equal(got, file)
    else:
        step = np.abs(file).max() / 127
        assert np.abs(got - file).mean() < 0.1 * step
    assert np.abs(file).max() > 0


def _entry_codes(whole: IntegerNetwork, feeds):
    """Quantize the inputs with numpy, so that nothing under NoFloats touches a float."""
    codes_of = {}
    for name in whole.entries:
        grid = whole.plan.params(name)
        codes = np.rint(feeds[name] / grid.scale) + grid.zero_point
        codes_of[name] = torch.from_numpy(
            codes.clip(grid.spec.qmin, grid.spec.qmax).astype(np.int32)
        )
    return codes_of


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("name", WHOLE)
def test_every_multiplier_has_its_form(name, kind, tmp_path):
    """What the file computes with: the float32 scales in it stand for the integers, exactly or to
    the last bit of float32."""
    plan = planned(network(name, tmp_path), kind)
    checked: set[str] = set()
    for site in plan.sites.values():
        y = plan.params(site.output)
        if site.weight is None or y is None or site.weight in checked:
            continue  # of a weight that is shared, the first reader's multiplier has the form
        x, w = plan.params(site.inputs[0]), plan.params(site.weight)
        assert w.spec.scale_kind == kind
        alpha = x.scale.astype(np.float64) * w.scale / y.scale
        if kind == "power_of_two":
            assert np.all(np.frexp(alpha)[0] == 0.5)
        elif kind == "double_shift":
            rest = alpha - 2.0 ** np.floor(np.log2(alpha))
            assert np.all((rest == 0) | (np.frexp(rest)[0] == 0.5))
        else:
            factors = alpha * 2.0 ** (15 - np.ceil(np.log2(alpha.max())))
            assert np.all(np.abs(factors - np.rint(factors)) < 2**-8)
        checked.add(site.weight)
    assert checked


def test_a_float_op_in_the_middle_is_named(tmp_path):
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    x = net.add("Softmax", x, axis=1, name="middle")
    net.output(net.conv(x, 8, 4, out="y"))
    model = net.load(tmp_path)
    bind(model, feeds_for(model))
    rewritten(model)
    _, plan = quantized(model)
    with pytest.raises(UnsupportedError, match=r'"middle" \(Softmax\).*between integer kernels'):
        IntegerNetwork(model, plan)


def test_floats_before_and_after_the_integer_part(tmp_path):
    """A division before and a Softmax after; the Softmax reads dequantized integers."""
    net = Net()
    x = net.add("Div", net.input("x", "N", 4, 8, 8), net.const(2.0))
    x = net.add("Relu", net.conv(x, 4, 8))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    x = net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1)
    net.output(net.add("Softmax", x, axis=1, out="y"))
    model = net.load(tmp_path)
    feeds = feeds_for(model)
    bind(model, feeds)
    rewritten(model)
    emitted, plan = quantized(model)
    got = IntegerNetwork(model, plan)(feeds)["y"]
    np.testing.assert_allclose(got, run(emitted, feeds)["y"], atol=2e-3)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)


def test_a_shape_that_depends_on_codes(tmp_path):
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    size = net.add("Slice", net.add("Shape", x), *[net.const(np.array([v])) for v in (0, 1)])
    size = net.add("Concat", size, net.const(np.array([-1])), axis=0)
    x = net.add("Reshape", x, size)
    net.output(net.add("Gemm", x, net.weight(5, 512), net.weight(5), transB=1, out="y"))
    model = net.load(tmp_path)
    feeds = feeds_for(model)
    emitted, plan = quantized(model)
    whole = IntegerNetwork(model, plan)
    assert any(op.op_type == "Reshape" and op.name in plan.data_movement_ops for op in model.graph)
    np.testing.assert_allclose(whole(feeds)["y"], run(emitted, feeds)["y"], atol=1e-5)


def test_sixteen_bit_activations_need_wider_sums():
    """Codes up to 65535 times 127 pass int32 after 258 products: 64-bit sums, no wrapping."""
    import onnx_ir as ir

    from qtool.quant.primitives import PerTensor, QuantParams, QuantSpec
    from qtool.simulation.integer_kernels import Work

    node = ir.Node("", "MatMul", [ir.Value(name="a"), ir.Value(name="b")], name="mm")
    act = QuantSpec(16, False, False)
    zero = np.zeros((), np.int32)
    x = QuantParams(act, np.float32(1e-3), zero)
    w = QuantParams(QuantSpec(8, True, True, PerTensor()), np.float32(1e-3), zero)
    y = QuantParams(act, np.float32(10.0), zero)
    weight = np.full((1000, 1), 127, np.int8)
    kernel = KERNELS["MatMul"](Work(node, 21, (x,), y, (0, 65535), "half_even", weight, None, w))
    got = kernel([torch.full((1, 1000), 65535, dtype=torch.int32)])
    assert int(got) == round(65535 * 127 * 1000 * 1e-7)


def test_weights_with_zero_points(tmp_path):
    """uint8 weights, compared with the kernels of the runtime."""
    model, chosen = network("residual", tmp_path), load_target("npu-u8")
    plan = annotate(model, chosen, Bits())
    stats = collect(
        model, observed_values(model, plan), [feeds_for(model)], histograms=True, threads=1
    )
    plan = freeze(model, weight_grids(model, choose_grids(plan, stats, MinMax())))
    whole, exact = IntegerNetwork(model, plan), OrtKernels(model, plan)
    with torch.inference_mode():
        codes = whole.run(whole.quantized(feeds_for(model, seed=5)))
    compared = 0
    for site in plan.sites.values():
        if site.output in plan.grid_of:
            inputs = {n: codes[n].numpy() for n in site.inputs if n in codes}
            apart = (exact.site(site, inputs) - codes[site.output]).abs()
            assert apart.max() <= 1 and apart.count_nonzero() < 1e-3 * apart.numel() + 1
            compared += 1
    assert compared


def test_a_folded_clip_limits_codes(tmp_path):
    """A grid wider than the Clip folded into it: codes stop where the Clip does."""
    model = network("inverted_bottleneck", tmp_path)
    plan = planned(model, "power_of_two")
    clipped = [s for s in plan.sites.values() if len(s.nodes) > 1]
    assert any(float(plan.params(s.output).hi) > 6 for s in clipped)
    whole = IntegerNetwork(model, plan)
    feeds = {k: 20 * v for k, v in feeds_for(model, seed=3).items()}
    with torch.inference_mode():
        codes = whole.run(whole.quantized(feeds))
    for site in clipped:
        grid = plan.params(site.output)
        values = (codes[site.output] - int(grid.zero_point)) * float(grid.scale)
        assert values.max() <= 6 + float(grid.scale) / 2
    emitted = emit_qdq(model, plan, cpu())
    np.testing.assert_array_equal(whole(feeds)["y"], run(emitted, feeds)["y"])
    executed = ops(optimized(emitted, tmp_path))
    convs = sum(s.op == "Conv" for s in plan.sites.values())
    assert executed.count("QLinearConv") == convs and "Conv" not in executed
