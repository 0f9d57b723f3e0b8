"""Laws of every entry of REWRITES: its signature, an equal float function, an honest count."""

import inspect

import numpy as np
import onnx_ir as ir
import pytest
from models import BUILDERS, Net, changed
from onnx import helper

from qtool.graph.queries import constant
from qtool.rewrites import REWRITES
from qtool.rewrites.rewrite import Rewrite


class FusedNet(Net):
    """A model that imports the domain of ONNX Runtime's fused operators."""

    def proto(self):
        proto = super().proto()
        proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        return proto


def fused_conv() -> Net:
    net = FusedNet()
    x = net.input("x", "N", 3, 6, 6)
    net.output(net.add("FusedConv", x, net.weight(4, 3, 3, 3), out="y", activation="Relu"))
    net.nodes[-1].domain = "com.microsoft"
    return net


def flatten_by_batch_size() -> Net:
    net = Net()
    x = net.conv(net.input("x", "N", 2, 4, 4), 2, 4)
    rows = net.add("Slice", net.add("Shape", x), *(net.const(np.array([k])) for k in (0, 1)))
    shape = net.add("Concat", rows, net.const(np.array([64])), axis=0)
    return net.output(net.add("Reshape", x, shape, out="y"))


def identity() -> Net:
    net = Net()
    x = net.add("Identity", net.conv(net.input("x", "N", 3, 6, 6), 3, 4))
    return net.output(net.add("Relu", x, out="y"))


def batchnorm_first() -> Net:
    net = Net()
    x = net.norm(net.input("x", "N", 4, 6, 6), 4)
    return net.output(net.conv(x, 4, 6, pads=[0] * 4, out="y"))


def scaled_gemm() -> Net:
    net = Net()
    x = net.input("x", "N", 8)
    return net.output(net.add("Gemm", x, net.weight(8, 4), net.weight(4), alpha=0.5, out="y"))


def strided_first_conv() -> Net:
    net = Net()
    x = net.input("x", "N", 3, 15, 12)
    return net.output(net.conv(x, 3, 4, k=7, strides=[2, 2], out="y"))


def decomposed() -> Net:
    """HardSwish, Gelu and LayerNormalization as operators, between affine blocks."""
    net = Net(opset=21, ir_version=10)
    x = net.conv(net.input("x", "N", 3, 6, 6), 3, 4)
    x = net.add("Add", net.add("Mul", x, net.const([1.5])), net.const([0.5]))
    x = net.add("Mul", x, net.const([1.0]))
    shifted = net.add("Add", x, net.const(np.float32(3)))
    gate = net.add("Clip", shifted, net.const(np.float32(0)), net.const(np.float32(6)))
    x = net.add("Div", net.add("Mul", x, gate), net.const(np.float32(6)))
    x = net.add("Add", net.add("Mul", x, net.const([0.4])), net.const([0.2]))
    x = net.conv(x, 4, 4, pads=[0] * 4)
    erf = net.add("Erf", net.add("Div", x, net.const(np.float32(2**0.5))))
    x = net.add("Mul", x, net.add("Add", erf, net.const(np.float32(1))))
    x = net.add("Mul", x, net.const(np.float32(0.5)))
    axes = net.const(np.array([-1]))
    centered = net.add("Sub", x, net.add("ReduceMean", x, axes))
    variance = net.add("ReduceMean", net.add("Mul", centered, centered), axes)
    root = net.add("Sqrt", net.add("Add", variance, net.const(np.float32(1e-5))))
    x = net.add("Mul", net.add("Div", centered, root), net.weight(4))
    return net.output(net.add("Relu", x, out="y"))


def decomposed_newer() -> Net:
    """SiLU by exp, and RMSNormalization in an opset that has it."""
    net = Net(opset=23, ir_version=10)
    x = net.add("MatMul", net.input("x", "N", 5, 8), net.weight(8, 8))
    one, minus = net.const(np.float32(1)), net.const(np.float32(-1))
    exponential = net.add("Exp", net.add("Mul", x, minus))
    x = net.add("Div", x, net.add("Add", exponential, one))
    square = net.add("ReduceMean", net.add("Mul", x, x), net.const(np.array([2])))
    root = net.add("Sqrt", net.add("Add", square, net.const(np.float32(1e-5))))
    x = net.add("Mul", net.add("Mul", x, net.add("Reciprocal", root)), net.weight(8))
    return net.output(net.add("Relu", x, out="y"))


def rows_of_an_encoder() -> Net:
    """Heads, and a normalization between two layers, as `matmul_to_gemm` leaves them."""
    net = Net()
    flat, whole = net.const(np.array([-1, 8])), net.const(np.array([1, 6, 8]))
    rows = net.add("Reshape", net.input("x", 1, 6, 8), flat)
    q, k, y = (net.add("Gemm", rows, net.weight(8, 8)) for _ in range(3))
    sizes = net.const(np.array([1, 6, 2, 4]))
    q = net.add("Transpose", net.add("Reshape", q, sizes), perm=(0, 2, 1, 3))
    k = net.add("Transpose", net.add("Reshape", k, sizes), perm=(0, 2, 3, 1))
    y = net.add("LayerNormalization", net.add("Reshape", y, whole), net.weight(8), axis=-1)
    y = net.add("Gemm", net.add("Reshape", y, flat), net.weight(8, 8))
    return net.output(net.add("MatMul", q, k), y)


NETS = {
    **BUILDERS,
    **{
        build.__name__: build
        for build in (
            fused_conv,
            flatten_by_batch_size,
            identity,
            batchnorm_first,
            scaled_gemm,
            strided_first_conv,
            decomposed,
            decomposed_newer,
            rows_of_an_encoder,
        )
    },
}


def violations(name: str) -> list[str]:
    """Return the laws that an entry of REWRITES breaks on NETS."""
    broken, total = [], 0
    for net, build in NETS.items():
        for before in ((), ("fold_constants",)):
            model = build().model()
            if before:
                model, _ = changed(build(), *before)
            try:
                after, count = changed(build(), *before, name)
            except AssertionError:
                broken.append(f"{net}: other outputs")
                continue
            if type(count) is not int:
                broken.append(f"{net}: returned {count!r}, expected an int")
            elif (count > 0) != (signature(after) != signature(model)):
                broken.append(f"{net}: returned {count}, but changed: {count == 0}")
            else:
                total += count
    return broken if total else [*broken, "applies to none of NETS"]


def signature(model: ir.Model) -> list[object]:
    """Return what a rewrite may change: nodes, their attributes, inputs and constants."""
    return [
        (
            node.op_type,
            sorted((name, str(a.value)) for name, a in node.attributes.items()),
            [v and (v.name, array_bytes(v)) for v in node.inputs],
        )
        for node in model.graph
    ]


def array_bytes(value: ir.Value) -> bytes | None:
    array = constant(value)
    return None if array is None else np.asarray(array).tobytes()


@pytest.mark.parametrize("name", REWRITES)
def test_every_entry_has_the_signature_of_a_rewrite(name):
    expected = inspect.signature(Rewrite.__call__).parameters
    parameters = inspect.signature(REWRITES[name]).parameters
    assert [*parameters] == [p for p in expected if p != "self"]
    assert (REWRITES[name].__doc__ or "").split(".")[0]


@pytest.mark.parametrize("name", REWRITES)
def test_every_entry_keeps_the_float_function_and_counts_its_changes(name):
    assert violations(name) == []


def doubles_a_weight(model, is_integer):
    value = next(v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    value.const_value = ir.Tensor(2 * value.const_value.numpy(), name=value.name)
    return 1


def counts_nothing(model, is_integer):
    return REWRITES["matmul_to_gemm"](model, is_integer) * 0


def changes_nothing(model, is_integer):
    return 1


def never_applies(model, is_integer):
    return 0


@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (doubles_a_weight, "residual: other outputs"),
        (counts_nothing, "transformer_mlp: returned 0, but changed: True"),
        (changes_nothing, "residual: returned 1, but changed: False"),
        (never_applies, "applies to none of NETS"),
    ],
)
def test_the_laws_can_fail(rewrite, message, monkeypatch):
    monkeypatch.setitem(REWRITES, "broken", rewrite)
    assert message in violations("broken")
