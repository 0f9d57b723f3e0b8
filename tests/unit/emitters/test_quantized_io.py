"""Files that read and write codes: the same numbers as between floats, and what they say."""

import json
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from models import BUILDERS, Net, bind, feeds_for, quantized, rewritten, run

from qtool.emitters.qoperator import to_operators
from qtool.emitters.quantized_io import quantize_io
from qtool.quant.primitives import QuantParams, QuantSpec
from qtool.quant.quantized_io import KEY, QuantizedIO, read_quantized_io

FORMATS = {"qdq": lambda emitted, plan: emitted, "qoperator": to_operators}


def prepared(net: Net) -> ir.Model:
    model = net.model()
    bind(model, feeds_for(model))
    rewritten(model)
    return model


def opened(model: ir.Model, form: str = "qdq"):
    """The file between floats, the file between codes, its io, notes."""
    emitted, plan = quantized(model)
    made = FORMATS[form](emitted.clone(), plan)
    io, notes = quantize_io(made, plan)
    return emitted, made, io, notes


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", BUILDERS)
def test_codes_in_and_out_give_the_same_numbers(name, form):
    model = prepared(BUILDERS[name]())
    emitted, made, io, notes = opened(model, form)
    read = read_quantized_io(made.metadata_props)  # all that a user of the file has
    feeds = feeds_for(model, seed=7)
    want, got = run(emitted, feeds), run(made, read.feeds(feeds))
    assert list(want) == list(got)
    for key, array in want.items():
        assert got[key].dtype == (np.uint8 if key in io.outputs else np.float32)
        np.testing.assert_array_equal(read.values(key, got[key]), array)
    assert {v.name for v in made.graph.inputs if v.dtype == ir.DataType.UINT8} == set(io.inputs)
    assert len(notes) == len(want) + len(feeds) - len(io.inputs) - len(io.outputs)
    assert all(v.uses() for v in made.graph.initializers.values())


def test_an_input_that_a_float_op_reads_stays_float():
    net = Net()
    x, s = net.input("x", "N", 4, 8, 8), net.input("s", "N", 4, 8, 8)
    y = net.conv(x, 4, 4, out="y")
    net.output(y, net.add("Tanh", net.add("Sub", s, net.conv(s, 4, 4)), out="z"))
    _, _, io, notes = opened(prepared(net))
    assert set(io.inputs) == {"x"} and set(io.outputs) == {"y"}
    assert notes == [
        'input "s" stays float: not only integer layers read it',
        'output "z" stays float: no integer layer writes it',
    ]


def test_an_output_that_is_read_inside_too():
    net = Net()
    mid = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8), out="mid")
    net.output(net.conv(mid, 8, 4, out="y"), net.add("Tanh", mid, out="t"), "mid")
    model = prepared(net)
    emitted, made, io, notes = opened(model)
    assert set(io.outputs) == {"mid", "y"}
    assert notes == ['output "t" stays float: no integer layer writes it']
    feeds = feeds_for(model, seed=3)
    want, got = run(emitted, feeds), run(made, io.feeds(feeds))
    for name, array in want.items():
        np.testing.assert_array_equal(io.values(name, got[name]), array)


def test_what_the_file_says_is_enough():
    spec = QuantSpec(5, False, False)
    io = QuantizedIO({"x": QuantParams(spec, np.float32(0.1), np.int32(7))}, {})
    read = read_quantized_io({KEY: json.dumps(io.described())})
    entry = io.described()["inputs"]["x"]
    x = np.array([-9, -0.75, -0.05, 0, 0.05, 0.15, 2.4, 9], np.float32)
    by_hand = np.clip(
        np.rint(x / np.float32(entry["scale"])) + entry["zero_point"], 0, entry["high"]
    )
    codes = read.feeds({"x": x, "ids": np.arange(3)})
    assert codes["x"].dtype == np.uint8 and codes["ids"].dtype == np.int64
    np.testing.assert_array_equal(codes["x"], by_hand)
    assert entry["high"] == 31 and codes["x"].max() == 31
    assert (codes["x"][0], codes["x"][3]) == (0, 7)  # the lowest code, and that of zero


def test_a_file_without_a_word_is_between_floats():
    assert read_quantized_io({}) == QuantizedIO()
    x = np.float32([1.5])
    assert QuantizedIO().feeds({"x": x})["x"] is x and QuantizedIO().values("y", x) is x


def test_a_signed_grid_keeps_its_sign():
    params = QuantParams(QuantSpec(16, True, True), np.float32(0.5), np.int32(0))
    io = replace(QuantizedIO(), outputs={"y": params})
    read = read_quantized_io({KEY: json.dumps(io.described())})
    assert read.outputs["y"].spec == params.spec
    assert read.values("y", np.array([-32767], np.int16)) == -16383.5
