"""Small ONNX models of the kinds exporters write, and the few lines that quantize one."""

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from qtool.annotation.annotator import annotate
from qtool.calibration import MinMax
from qtool.calibration.collect import choose_grids, collect, observed_values
from qtool.data.spool import spool_batches
from qtool.emitters import emit_qdq
from qtool.loading import bind_shapes, infer_shapes, load_model
from qtool.pipeline import annotate_stage
from qtool.pipeline.calibration import grids
from qtool.pipeline.inputs.specs import input_specs
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.rewrites import REWRITES
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageCache
from qtool.targets.loader import load_target
from qtool.targets.target import Target
from qtool.weights.grids import weight_grids

Arrays = dict[str, np.ndarray]


class Net:
    """A model being written: every call adds one thing and returns its value name."""

    def __init__(self, opset: int = 17, ir_version: int = 8, seed: int = 0) -> None:
        self.opset, self.ir_version = opset, ir_version
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []

    def input(self, name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, *names: str, shape: tuple[int | str, ...] | None = None) -> "Net":
        for name in names:
            self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return self

    def const(self, array: object, name: str = "") -> str:
        data = np.asarray(array)
        data = data.astype(np.float32) if data.dtype == np.float64 else data
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(data, name))
        return name

    def weight(self, *shape: int, name: str = "") -> str:
        fan = float(np.prod(shape[1:])) if len(shape) > 1 else 4.0
        return self.const(self.rng.normal(0, fan**-0.5, shape), name)

    def add(
        self, op: str, *inputs: str, out: str = "", name: str = "", **attributes: object
    ) -> str:
        k = len(self.nodes)
        outs = out.split() or [f"v{k}"]
        node = helper.make_node(op, inputs, outs, name=name or f"{op}{k}", **attributes)
        self.nodes.append(node)
        return outs[0]

    def conv(self, x: str, c_in: int, c_out: int, k: int = 3, **attributes: object) -> str:
        """A Conv with bias; pads keep the size unless given."""
        attributes.setdefault("pads", [k // 2] * 4)
        group = int(attributes.get("group", 1))  # type: ignore[call-overload]
        out, name = str(attributes.pop("out", "")), str(attributes.pop("name", ""))
        w = self.weight(c_out, c_in // group, k, k)
        return self.add("Conv", x, w, self.weight(c_out), out=out, name=name, **attributes)

    def norm(self, x: str, channels: int, shift: bool = True, out: str = "") -> str:
        rng = self.rng
        gamma, var = (self.const(rng.uniform(0.5, 2, channels)) for _ in range(2))
        zeros = np.zeros(channels)
        beta = self.const(rng.normal(0, 1, channels) if shift else zeros)
        mean = self.const(rng.normal(0, 1, channels) if shift else zeros)
        return self.add("BatchNormalization", x, gamma, beta, mean, var, out=out)

    def proto(self) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)

    def model(self) -> ir.Model:
        """The model in memory with shapes, not sent through loading."""
        model = ir.from_proto(self.proto())
        infer_shapes(model)
        return model

    def load(self, folder: Path) -> ir.Model:
        """The model as qtool reads it from a file."""
        path = folder / "net.onnx"
        onnx.save(self.proto(), path)
        return load_model(path).model


def conv_bn_relu() -> Net:
    net = Net()
    x = net.input("x", "N", 3, 12, 12)
    x = net.add("Relu", net.norm(net.conv(x, 3, 8), 8))
    x = net.add("Clip", net.norm(net.conv(x, 8, 8), 8), net.const(0.0), net.const(6.0))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    return net.output(net.add("Gemm", x, net.weight(5, 8), net.weight(5), transB=1, out="y"))


def residual() -> Net:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    z = net.conv(net.add("Relu", net.conv(x, 8, 8)), 8, 8)
    x = net.add("Relu", net.add("Add", z, x))
    return net.output(net.conv(x, 8, 4, out="y"))


def option_a() -> Net:
    """ResNet's parameter-free shortcut: a strided Slice, then a Pad of channels."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 4))
    z = net.conv(net.add("Relu", net.conv(x, 4, 8, strides=[2, 2])), 8, 8)
    ends = [net.const(np.array(v)) for v in ([0, 0], [99, 99], [2, 3], [2, 2])]
    s = net.add("Slice", x, *ends)
    s = net.add("Pad", s, net.const(np.array([0, 2, 0, 0, 0, 2, 0, 0])), net.const(0.0))
    return net.output(net.conv(net.add("Relu", net.add("Add", z, s)), 8, 4, out="y"))


def depthwise() -> Net:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 8, 8), 3, 8))
    x = net.add("Relu", net.norm(net.conv(x, 8, 8, group=8), 8))
    return net.output(net.conv(x, 8, 6, k=1, out="y"))


def legacy_pad(net: Net, x: str, pads: tuple[int, ...]) -> str:
    """Zero padding as the legacy torch exporter writes it: pads computed by a chain of nodes."""
    torch_order = net.const(np.array([pads[1], pads[3], pads[0], pads[2]]))
    count = net.add("ConstantOfShape", net.const(np.array([4])), value=_int64(0))
    both = net.add("Concat", torch_order, count, axis=0)
    rows = net.add("Reshape", both, net.const(np.array([-1, 2])))
    ends = [net.const(np.array(v)) for v in ([-1], [np.iinfo(np.int64).min], [0], [-1])]
    turned = net.add("Transpose", net.add("Slice", rows, *ends), perm=[1, 0])
    flat = net.add("Reshape", turned, net.const(np.array([-1])))
    return net.add("Pad", x, net.add("Cast", flat, to=TensorProto.INT64), net.const(0.0))


def _int64(value: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([value], np.int64))


def inverted_bottleneck() -> Net:
    net = Net()
    zero, six = net.const(0.0, "zero"), net.const(6.0, "six")
    x = net.conv(legacy_pad(net, net.input("x", "N", 3, 9, 9), (0, 0, 1, 1)), 3, 8, pads=[0] * 4)
    x = net.add("Clip", net.norm(x, 8), zero, six)
    z = net.add("Clip", net.norm(net.conv(x, 8, 16, k=1), 16), zero, six)
    z = net.conv(legacy_pad(net, z, (1, 1, 1, 1)), 16, 16, group=16, pads=[0] * 4)
    z = net.norm(net.conv(net.add("Clip", net.norm(z, 16), zero, six), 16, 8, k=1), 8)
    return net.output(net.conv(net.add("Add", x, z), 8, 4, k=1, out="y"))


def fire() -> Net:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 3, 9, 9), 3, 8, strides=[2, 2]))
    x = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1])
    s = net.add("Relu", net.conv(x, 8, 4, k=1))
    a, b = (net.add("Relu", net.conv(s, 4, 8, k=k)) for k in (1, 3))
    return net.output(net.conv(net.add("Concat", a, b, axis=1), 16, 5, k=1, out="y"))


def squeeze_excite() -> Net:
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    s = net.add("ReduceMean", x, axes=[2, 3], keepdims=1)
    s = net.conv(net.add("Relu", net.conv(s, 8, 4, k=1)), 4, 8, k=1)
    x = net.add("Mul", x, net.add("Sigmoid", s))
    return net.output(net.conv(x, 8, 4, k=1, out="y"))


def transformer_mlp() -> Net:
    net = Net()
    x = net.input("x", "N", 6, 8)
    h = net.add("LayerNormalization", x, net.weight(8), net.weight(8))
    h = net.add("Add", net.weight(16), net.add("MatMul", h, net.weight(8, 16)))
    h = net.add("Mul", net.add("Sigmoid", h), h)
    h = net.add("Add", net.add("MatMul", h, net.weight(16, 8)), net.weight(8))
    return net.output(net.add("Add", x, h, out="y"))


def tied() -> Net:
    """Two Convs with one weight and one bias, and a Gemm pair tied the same way."""
    net = Net()
    w, b = net.weight(4, 4, 3, 3, name="w"), net.weight(4, name="b")
    x = net.input("x", "N", 4, 6, 6)
    for _ in range(2):
        x = net.add("Relu", net.add("Conv", x, w, b, pads=[1] * 4))
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    m = net.weight(4, 4, name="m")
    return net.output(net.add("Gemm", net.add("Gemm", x, m, b), m, b, out="y"))


def big_conv() -> Net:
    """A weight too large to travel through the converter (see ``external_data.SMALL_BYTES``)."""
    net = Net(opset=12)
    x = net.conv(net.input("x", "N", 16, 6, 6), 16, 32, name="wide")
    return net.output(net.add("Relu", x, out="y"))


BUILDERS = {
    f.__name__: f
    for f in (
        conv_bn_relu,
        residual,
        option_a,
        depthwise,
        inverted_bottleneck,
        fire,
        squeeze_excite,
        transformer_mlp,
        tied,
    )
}


@cache
def cpu() -> Target:
    return load_target("onnxruntime-cpu")


def bind(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> None:
    bind_shapes(model, {name: array.shape for name, array in feeds.items()})


def feeds_for(model: ir.Model, rows: int = 4, seed: int = 1, spatial: int = 8) -> Arrays:
    """Random normal data; unknown dimensions are ``rows`` first and ``spatial`` later."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in model.graph.inputs:
        shape = [
            d if isinstance(d, int) else rows if axis == 0 else spatial
            for axis, d in enumerate(value.shape or ())
        ]
        found[value.name or ""] = rng.normal(0, 1, shape).astype(value.dtype.numpy())  # type: ignore[union-attr]
    return found


def run(model: ir.Model | onnx.ModelProto, feeds: Arrays, level: int = 99) -> Arrays:
    """Outputs by name, from ONNX Runtime on one thread."""
    session = ort.InferenceSession(_bytes(model), _options(level), ["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def optimized(model: ir.Model, folder: Path) -> ir.Model:
    """The graph ONNX Runtime really executes."""
    options = _options(99)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(_bytes(model), options, ["CPUExecutionProvider"])
    return ir.load(folder / "optimized.onnx")


def _bytes(model: ir.Model | onnx.ModelProto) -> bytes:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    return proto.SerializeToString()


def _options(level: int) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel(level)
    return options


def rewritten(model: ir.Model, *names: str, floats: frozenset[str] = frozenset()) -> dict[str, int]:
    """Apply rewrites (default: the target's) in place; returns how often each applied."""
    counts = {}
    for name in names or cpu().rewrites:
        counts[name] = REWRITES[name](model, lambda node: node.name not in floats)
        infer_shapes(model)
    return counts


def changed(
    net: Net, *names: str, feeds: Arrays | None = None, floats: frozenset[str] = frozenset()
) -> tuple[ir.Model, int]:
    """Apply rewrites; (model, count of the last one). Outputs must stay, in name and value."""
    model, before = net.model(), net.proto()
    feeds = feeds or feeds_for(model)
    bind(model, feeds)
    want = run(before, feeds)
    counts = rewritten(model, *names, floats=floats)
    got = run(model, feeds)
    assert list(got) == list(want)
    assert [v.name for v in model.graph.inputs] == [v.name for v in before.graph.input]
    for name, array in want.items():
        # float32 in another order; sums of at most a few hundred terms
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-5 * np.abs(array).max())
        assert got[name].shape == array.shape
    return model, counts[names[-1]]


def ops(model: ir.Model) -> list[str]:
    return [n.op_type for n in model.graph]


def frozen_plan(model: ir.Model, bits: Bits | None = None, seed: int = 1) -> QuantPlan:
    """Annotate, calibrate by min-max on random data, freeze."""
    plan = annotate(model, cpu(), bits or Bits())
    batches = [feeds_for(model, seed=seed)]
    stats = collect(model, observed_values(model, plan), batches, histograms=False, threads=1)
    return freeze(model, weight_grids(model, choose_grids(plan, stats, MinMax())))


def quantized(
    model: ir.Model, bits: Bits | None = None, seed: int = 1
) -> tuple[ir.Model, QuantPlan]:
    """The emitted model and its plan."""
    plan = frozen_plan(model, bits, seed)
    return emit_qdq(model, plan, cpu()), plan


def sqnr(reference: np.ndarray, found: np.ndarray) -> float:
    """Signal to noise in dB."""
    noise = float(((reference - found) ** 2).sum())
    return 10 * float(np.log10(float((reference**2).sum()) / max(noise, 1e-30)))


def scale_of(value: ir.Value) -> np.ndarray:
    """A scale of an emitted file: an initializer, or the product of two that a bias has."""
    producer = value.producer()
    if producer is None:
        return value.const_value.numpy()  # type: ignore[union-attr]
    assert producer.op_type == "Mul"
    left, right = (v.const_value.numpy() for v in producer.inputs)  # type: ignore[union-attr]
    return left * right


def two_convs(weight=None, bias=None, middle=None) -> Net:
    """The first Conv's constants may be given; ``middle`` adds a constant in between."""
    net = Net()
    x = net.input("x", "N", 4, 6, 6)
    w = net.weight(8, 4, 3, 3, name="w") if weight is None else net.const(weight, "w")
    b = net.weight(8, name="b") if bias is None else net.const(bias, "b")
    x = net.add("Conv", x, w, b, pads=[1] * 4, name="conv")
    x = x if middle is None else net.add("Add", x, net.const(middle, "k"))
    return net.output(net.conv(x, 8, 4, out="y"))


def auxiliary_output() -> Net:
    """Return a network whose first output is computed, and read by nothing, before the second."""
    net = Net()
    x = net.add("Relu", net.conv(net.input("x", "N", 4, 8, 8), 4, 8))
    net.output(net.conv(x, 8, 4, out="y"))
    x = net.add("Relu", net.conv(x, 8, 8))
    return net.output(net.conv(x, 8, 2, out="z"))


def graph_context(model, target=None, bits=None, dataset=None, threads=1) -> Context:
    """A context for a graph that was never a file; without ``dataset`` nothing can calibrate."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Context(
        model=model,
        name="net",
        sha256="",
        target=target or cpu(),
        bits=bits or Bits(),
        inputs=input_specs(model, "net")[0],
        calibration=dataset,
        cache=StageCache(folder, fresh=True),
        threads=threads,
    )


def make_plan(model, target, bits) -> QuantPlan:
    """The plan of a rewritten graph, without grids."""
    return annotate_stage.make_plan(graph_context(model, target, bits))


def make_grids(model, plan, batches, calibrator, scheme=None, target=None) -> QuantPlan:
    """The plan with grids from some batches."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    context = graph_context(model, target, dataset=spool_batches(batches, folder))
    return grids.make_grids(context, plan, calibrator, scheme)
