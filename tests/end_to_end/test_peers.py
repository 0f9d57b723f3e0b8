"""A tool's file that is not quantized is not counted as a good one; differences need certainty."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.peer_files import stored_layers
from benchmarks.peers_page import is_quantized, verdict

FLOAT = {"w": np.ones((2, 3, 1, 1), np.float32)}
CODES = {"q": np.array([-8, 7, 0, 1, 2, 3], np.int8).reshape(2, 3, 1, 1), "s": np.float32(0.1)}


def conv(path, constants, *before):
    """Write a convolution whose weight "w" is a constant, or the output of the nodes before it."""
    graph = helper.make_graph(
        [*before, helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2, 4, 4])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    onnx.save(helper.make_model(graph), path)
    return path


@pytest.fixture
def source(tmp_path):
    return conv(tmp_path / "float.onnx", FLOAT)


def row(layers, **accuracy):
    return {"layers": layers, "accuracy": accuracy}


def test_an_unchanged_file_has_no_quantized_layer(source):
    layers = stored_layers(source, source)
    assert layers == {"layers": 1, "types": {"float": 1}, "quantize_linear": 0}
    perfect = row(layers, samples=100, quantized=90.0, agreement=100.0)
    assert not is_quantized(perfect)
    assert verdict({"samples": 100, "quantized": 90.0, "agreement": 100.0}, perfect).startswith(
        "leads"
    )


def test_integers_are_counted_and_codes_of_four_bits_are_named(source, tmp_path):
    dequantize = helper.make_node("DequantizeLinear", ["q", "s"], ["w"])
    four = conv(tmp_path / "four.onnx", CODES, dequantize)
    assert stored_layers(source, four)["types"] == {"int8 of 4 bits": 1}
    eight = conv(tmp_path / "eight.onnx", CODES | {"q": 2 * CODES["q"]}, dequantize)
    assert stored_layers(source, eight)["types"] == {"int8": 1}
    assert is_quantized({"layers": stored_layers(source, eight)})


def test_a_float_weight_behind_quantize_linear_is_quantized(source, tmp_path):
    pair = [
        helper.make_node("QuantizeLinear", ["f", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"]),
    ]
    constants = {"f": FLOAT["w"], "s": CODES["s"], "z": np.int8(0)}
    layers = stored_layers(source, conv(tmp_path / "q.onnx", constants, *pair))
    assert layers["types"] == {"float, Q": 1}
    assert is_quantized({"layers": layers})


@pytest.mark.parametrize(
    ("theirs", "word"), [(90.0, "level"), (89.0, "level"), (80.0, "leads"), (99.0, "behind")]
)
def test_a_difference_within_the_sampling_error_is_level(theirs, word):
    # 2 % of 400 samples differ at most: one standard error is 0.7 points.
    own = {"samples": 400, "quantized": 90.0, "agreement": 99.0}
    peer = row({"types": {"int8": 1}}, samples=400, quantized=theirs, agreement=99.0)
    assert verdict(own, peer).split()[0] == word
