"""Known answers: the numbers are worked by hand from the definitions, or ONNX Runtime's own."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from qtool.quant.primitives import (
    SMALLEST_SCALE,
    PerBlock,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantSpec,
    dequantize,
    fake_quantize,
    params_from_range,
    quantize,
    round_half_away,
    round_half_even,
    round_half_up,
)

UINT8 = QuantSpec(8, signed=False, symmetric=False)
INT8 = QuantSpec(8, signed=True, symmetric=False)
NARROW8 = QuantSpec(8, signed=True, symmetric=True)
NARROW4 = QuantSpec(4, signed=True, symmetric=True)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("bits", "signed", "symmetric", "qmin", "qmax"),
    [
        (8, False, False, 0, 255),
        (8, False, True, 0, 255),
        (8, True, False, -128, 127),
        (8, True, True, -127, 127),
        (4, True, True, -7, 7),
        (2, True, True, -1, 1),
        (16, False, False, 0, 65535),
        (32, True, True, -(2**31) + 1, 2**31 - 1),
    ],
)
def test_integer_limits(bits, signed, symmetric, qmin, qmax):
    spec = QuantSpec(bits, signed, symmetric)
    assert (spec.qmin, spec.qmax) == (qmin, qmax)


@pytest.mark.parametrize(("spec", "zero"), [(UINT8, 64), (INT8, -64)])
def test_affine_range_of_minus_one_to_three(spec, zero):
    params = params_from_range(-1.0, 3.0, spec)
    assert params.scale == np.float32(4 / 255)
    assert params.scale.shape == params.zero_point.shape == ()
    assert (params.scale.dtype, params.zero_point.dtype) == (np.float32, np.int32)
    assert params.zero_point == zero
    assert quantize(f32(1.0, 0.0), params).tolist() == [zero + 64, zero]
    assert fake_quantize(f32(0.0), params).tolist() == [0.0]
    # 1e-6: the expected values are given to six decimals
    assert (params.lo, params.hi) == pytest.approx((-1.003922, 2.996078), abs=1e-6)
    assert float(fake_quantize(f32(1.0), params)[0]) == pytest.approx(1.003922, abs=1e-6)


def test_the_range_of_dynamic_quantize_linear():
    params = params_from_range(-3.0, 2.0, UINT8)
    assert params.scale == np.float32(5 / 255)
    assert params.zero_point == 153


def test_symmetric_range():
    params = params_from_range(-2.54, 1.0, NARROW8)
    assert params.scale == np.float32(0.02)
    assert params.zero_point == 0
    assert quantize(f32(1.0, -2.54, 3.0, -3.0), params).tolist() == [50, -127, 127, -127]
    # 1e-6: given to six decimals
    assert float(params_from_range(-2.54, 0.0, NARROW4).scale) == pytest.approx(0.362857, abs=1e-6)


def test_symmetric_unsigned_range():
    params = params_from_range(0.0, 5.1, QuantSpec(8, signed=False, symmetric=True))
    assert params.scale == np.float32(0.02)
    assert quantize(f32(-1.0, 0.0, 5.1, 9.0), params).tolist() == [0, 0, 255, 255]


def test_one_scale_for_each_channel_saves_the_small_one():
    weight = np.array([[1, -1], [100, 50]], np.float32)
    whole = params_from_range(weight.min(), weight.max(), NARROW4)
    assert fake_quantize(weight, whole)[0].tolist() == [0, 0]
    spec = replace(NARROW4, granularity=PerChannel(0))
    each = params_from_range(weight.min(1), weight.max(1), spec)
    assert each.scale.tolist() == f32(1 / 7, 100 / 7).tolist()
    assert quantize(weight, each).tolist() == [[7, -7], [7, 4]]  # 50 / (100 / 7) = 3.5, a tie
    assert fake_quantize(weight, each)[0].tolist() == [1, -1]


def test_channels_along_another_axis():
    weight = np.array([[1, 100], [-1, 50]], np.float32)
    spec = replace(NARROW4, granularity=PerChannel(1))
    params = params_from_range(weight.min(0), weight.max(0), spec)
    assert quantize(weight, params).tolist() == [[7, 7], [-7, 4]]


def test_blocks_and_a_shorter_last_one():
    spec = replace(NARROW4, granularity=PerBlock(axis=1, size=2))
    params = QuantParams(spec, np.array([[1, 10, 100]], np.float32), np.zeros((1, 3), np.int32))
    values = np.array([[3, 8, 30, 80, 300]], np.float32)
    assert quantize(values, params).tolist() == [[3, 7, 3, 7, 3]]
    assert fake_quantize(values, params).tolist() == [[3, 7, 30, 70, 300]]


ROUNDED = {  # mode -> what the ties of TIES become
    round_half_even: [0, 0, 2, -2, 2, -2],
    round_half_away: [1, -1, 2, -2, 3, -3],
    round_half_up: [1, 0, 2, -1, 3, -2],
}
TIES = [0.5, -0.5, 1.5, -1.5, 2.5, -2.5]


@pytest.mark.parametrize("mode", ROUNDED)
@pytest.mark.parametrize("make", [f32, lambda *x: torch.tensor(x)], ids=["numpy", "torch"])
class TestRounding:
    def test_ties(self, mode, make):
        assert mode(make(*TIES)).tolist() == ROUNDED[mode]

    def test_neighbours_of_ties_go_to_the_nearest(self, mode, make):
        # adding 0.5 in float32 would carry 0.49999997 to 1 and 8388609 to 8388610
        below, above = np.nextafter(f32(0.5, 2.5), f32(0)), np.nextafter(f32(0.5, 2.5), f32(9))
        for sign in (1, -1):
            assert mode(make(*(sign * below).tolist())).tolist() == [0, 2 * sign]
            assert mode(make(*(sign * above).tolist())).tolist() == [sign, 3 * sign]
        assert mode(make(8388609.0, -8388609.0)).tolist() == [8388609, -8388609]

    def test_the_kind_is_kept(self, mode, make):
        x = make(*TIES)
        assert mode(x).dtype == x.dtype
        assert quantize(x, params_from_range(-1, 3, UINT8), mode).dtype == x.dtype


@pytest.mark.parametrize("symmetric", [True, False])
class TestHostileRanges:
    def test_no_extent_gives_scale_one(self, symmetric):
        spec = QuantSpec(8, True, symmetric, PerChannel(0))
        params = params_from_range(np.zeros(2), f32(0, 1), spec)
        assert params.scale[0] == 1
        assert fake_quantize(np.zeros((2, 3), np.float32), params).tolist() == [[0] * 3] * 2

    @pytest.mark.parametrize("extent", [1e-45, 1e-40, 1e-38])
    def test_denormals_give_a_normal_scale(self, symmetric, extent):
        params = params_from_range(-extent, extent, QuantSpec(8, True, symmetric))
        assert params.scale == np.float32(SMALLEST_SCALE)
        assert np.isfinite(fake_quantize(f32(-extent, extent), params)).all()

    def test_a_range_of_one_sign_is_widened_to_zero(self, symmetric):
        for limits in [(2.0, 3.0), (-3.0, -2.0)]:
            params = params_from_range(*limits, QuantSpec(8, True, symmetric))
            lo, hi = params.lo, params.hi
            # half a step: the zero point of the asymmetric grid is rounded
            assert lo <= min(0, limits[0]) + params.scale / 2
            assert hi >= max(0, limits[1]) - params.scale / 2
            assert fake_quantize(f32(0.0), params)[0] == 0

    @pytest.mark.parametrize("limits", [(-np.inf, 1), (0, np.inf), (np.nan, 1), (0, [1, np.nan])])
    def test_what_is_not_finite_is_refused(self, symmetric, limits):
        with pytest.raises(ValueError, match="is not finite"):
            params_from_range(*limits, QuantSpec(8, True, symmetric))


def test_bias_codes_of_32_bits_are_exact_in_float64():
    spec = QuantSpec(32, signed=True, symmetric=True)
    params = QuantParams(spec, np.array(1e-4, np.float32), np.array(0, np.int32))
    codes = np.array([2**31 - 1, -(2**31) + 1, 123456789], np.float64)
    assert quantize(dequantize(codes, params), params).tolist() == codes.tolist()


def runtime_answer(x: np.ndarray, params: QuantParams, dtype: np.dtype) -> tuple:
    """Codes and values of ONNX Runtime's QuantizeLinear and DequantizeLinear."""
    granularity = params.spec.granularity
    where = {} if isinstance(granularity, PerTensor) else {"axis": granularity.axis}
    where |= {"block_size": granularity.size} if isinstance(granularity, PerBlock) else {}
    grid = [
        onnx.numpy_helper.from_array(params.scale, "s"),
        onnx.numpy_helper.from_array(params.zero_point.astype(dtype), "z"),
    ]
    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **where),
        onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **where),
    ]
    values = {
        name: onnx.helper.make_tensor_value_info(name, kind, x.shape)
        for name, kind in [("x", 1), ("q", grid[1].data_type), ("y", 1)]
    }
    graph = onnx.helper.make_graph(nodes, "g", [values["x"]], [values["q"], values["y"]], grid)
    opset = onnx.helper.make_opsetid("", 21)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), PerChannel(1), PerBlock(1, 8)])
@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (UINT8, np.uint8),
        (INT8, np.int8),
        (QuantSpec(16, False, False), np.uint16),
        (QuantSpec(16, True, False), np.int16),
    ],
    ids=["uint8", "int8", "uint16", "int16"],
)
def test_onnx_runtime_gives_the_same_bits(spec, dtype, granularity):
    x = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)
    x[0] = np.arange(-16, 16) * 0.5
    shape = {"tensor": (), "channel": x.shape[getattr(granularity, "axis", 0)], "block": (16, 4)}
    hi = np.random.default_rng(1).uniform(0.5, 3, shape[granularity.name])
    params = params_from_range(-0.7 * hi, hi, replace(spec, granularity=granularity))
    codes, values = runtime_answer(x, params, dtype)
    np.testing.assert_array_equal(quantize(x, params), codes)
    np.testing.assert_array_equal(fake_quantize(x, params), values)
