"""Loading of ONNX files: opset upgrade, constants as initializers, node names, shape inference.

The opset is changed here and nowhere else. Large weights are removed from the graph while the C++
version converter and shape inference run, and put back afterwards, because protobuf messages are
limited to 2 GB and would copy the weights. For external data see :mod:`external_data`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qtool import files
from qtool.errors import ModelError, UnsupportedError
from qtool.graph.queries import captured
from qtool.loading.cast_like import replace_cast_like
from qtool.loading.external_data import SMALL_BYTES, resolve_external_data
from qtool.loading.file_checks import check_file, check_path, graphs
from qtool.loading.float16 import widen
from qtool.loading.names import assign_node_names, rename_repeated_values
from qtool.loading.open_dimensions import EMPTY, had_empty_sizes, release_open_dimensions
from qtool.loading.opset_upgrade import restore_semantics
from qtool.loading.size_checks import check_sizes, has_long_vector
from qtool.loading.unsupported import check_supported

# DequantizeLinear per channel needs opset 13. Models from there on are used as they are if the
# converter cannot raise them further.
OLDEST_OPSET = 13

# Operators that occur in quantized models only.
QUANTIZED_OPS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "QLinearConv",
    "QLinearMatMul",
    "ConvInteger",
    "MatMulInteger",
    "QLinearAdd",
    "QLinearMul",
    "QLinearConcat",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "QLinearSoftmax",
    "QGemm",
    "QAttention",
    "MatMulNBits",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "GatherBlockQuantized",
    "Quant",
    "BipolarQuant",
    "FakeQuantize",
}


@dataclass(frozen=True)
class Loaded:
    """A loaded model.

    Attributes:
        model: the graph, ready for rewrites.
        path: the float ONNX file, which verification runs.
        sha256: hex digest of the user's files.
        notes: changes made while loading, and those that failed, one sentence each.
        name: the user's name of the model where it is not ``path``: a factory or a torch file.
        size: bytes of ``path`` with its external data; 0 where it was not measured.
    """

    model: ir.Model
    path: Path
    sha256: str
    notes: tuple[str, ...]
    name: str = ""
    size: int = 0

    @property
    def shown(self) -> str:
        """The name of the model in messages and in the report."""
        return self.name or str(self.path)

    @property
    def big(self) -> bool:
        """True for a model so large that only one session may hold its weights at a time."""
        return self.size > files.EXTERNAL_BYTES


def load_model(path: Path, opset: int = 21) -> Loaded:
    """Read an ONNX file for quantization.

    Args:
        path: a ``.onnx`` file, with its external data in the same folder or below it.
        opset: the opset of the default domain to raise the model to; a newer one stays.

    Raises:
        ModelError: missing, empty or damaged file (exit 2).
        UnsupportedError: already quantized, or an opset that cannot be raised (exit 3).
    """
    model, parts = read_graph(path)
    check_not_quantized(model, path)
    model, notes = normalize(model, opset, path)
    size = sum(part.stat().st_size for part in parts)
    return Loaded(model, path, files.digest_of(parts), tuple(notes), size=size)


def read_graph(path: Path) -> tuple[ir.Model, list[Path]]:
    """Read the graph of an ONNX file without changes.

    Args:
        path: a ``.onnx`` file.

    Returns:
        The graph and the files it was read from: ``path`` and its external data.

    Raises:
        ModelError: missing, empty or damaged file (exit 2).
    """
    check_path(path)
    with _readable(path):
        proto = onnx.load(path, load_external_data=False)
    check_file(proto, path)
    with _readable(path):
        model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, path.absolute().parent)
    if not len(model.graph) or not model.graph.outputs:
        raise ModelError(f"model {path}: the graph has no nodes or no outputs; export it again")
    parts = resolve_external_data(model, path.absolute())
    _check_wiring(model, path)
    return model, parts


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Convert whatever protobuf and onnx_ir raise for damaged bytes to one sentence."""
    try:
        yield
    except Exception as error:  # of many kinds
        raise ModelError(
            f"model {path}: not a readable ONNX file ({error}); export it again"
        ) from error


def normalize(model: ir.Model, opset: int, path: Path) -> tuple[ir.Model, list[str]]:
    """Normalize a graph: sorted, without functions, upgraded, named, float32, with shapes.

    Args:
        model: changed in place, or replaced by its upgraded form.
        opset: the opset of the default domain to raise the model to.
        path: for messages.

    Returns:
        The graph and its changes, one sentence each.

    Raises:
        ModelError: its nodes form a cycle, its functions cannot be inlined, or its declared sizes
            do not fit into memory (exit 2).
        UnsupportedError: its opset cannot be raised, or it computes random numbers or text
            (exit 3).
    """
    try:
        model.graph.sort()  # ONNX Runtime accepts any order, the version converter does not
    except ValueError as error:
        raise ModelError(f"model {path}: its nodes form a cycle; export it again") from error
    release_open_dimensions(model)
    if model.functions:
        try:
            passes.InlinePass()(model)
        except Exception as error:  # a pass wraps whatever a function's body raises
            raise ModelError(
                f"model {path}: its functions cannot be inlined ({error}); export it again "
                "without them"
            ) from error
    passes.RemoveInitializersFromInputsPass()(model)
    before = model.opset_imports.get("", 1)
    opened = had_empty_sizes(model)
    model, notes = _upgrade_opset(model, opset, path)
    if opened:  # the upgraded graph is another object
        model.meta[EMPTY] = True
    # After the upgrade, whose adapters add Constant nodes, such as axes that became inputs.
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    assign_node_names(model)
    rename_repeated_values(model)
    if model.opset_imports.get("", 1) > before:
        restore_semantics(model, before, path)
    if count := widen(model):
        notes.append(f"{count} tensors of 16-bit floats widened to float32")
    infer_shapes(model)
    check_supported(model, str(path))
    check_sizes(model, str(path))
    replace_cast_like(model)
    return model, notes


def quantized_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the quantization operators of a model."""
    return [n for n in model.graph.all_nodes() if n.op_type in QUANTIZED_OPS]


def check_not_quantized(model: ir.Model, path: Path) -> None:
    """Check that a model has no quantization operators.

    Args:
        model: the graph as read.
        path: for messages.

    Raises:
        UnsupportedError: it has; names their number, their kinds and the first one.
    """
    nodes = quantized_nodes(model)
    if nodes:
        kinds = ", ".join(sorted({n.op_type for n in nodes}))
        raise UnsupportedError(
            f"model {path}: already quantized: {len(nodes)} nodes of kind {kinds}, the first is "
            f'"{nodes[0].name}"; give the float model it was made from, or add --requantize '
            "(requantize=True in Python) to convert it to float first"
        )


def _check_wiring(model: ir.Model, path: Path) -> None:
    """Check that every value a node reads is an input, an initializer or an output of a node."""
    graph = model.graph
    sources = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in (*node.inputs, *captured(node)):
            if value is None or value.producer() is not None or value in sources:
                continue
            # onnx_ir does not read sparse initializers.
            sparse = onnx.load(path, load_external_data=False).graph.sparse_initializer
            if value.name in [tensor.values.name for tensor in sparse]:
                raise UnsupportedError(
                    f'model {path}: the weights "{value.name}" are stored sparse; save them dense'
                )
            raise ModelError(
                f'model {path}: node "{node.name or node.op_type}" reads "{value.name}", which '
                "nothing makes; export it again"
            )


def _large_weights(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Return the initializers that are left out of protobuf messages, by name."""
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > SMALL_BYTES
    }


@contextmanager
def _proto_without_weights(model: ir.Model) -> Iterator[onnx.ModelProto]:
    """Yield the model as protobuf, with inputs in place of its large weights."""
    graph, weights = model.graph, _large_weights(model)
    inputs = list(graph.inputs)
    for name, tensor in weights.items():
        value = graph.initializers.pop(name)
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        graph.inputs.append(value)
    try:
        yield ir.to_proto(model)
    finally:
        for name, tensor in weights.items():
            value = next(v for v in reversed(graph.inputs) if v.name == name)
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.register_initializer(value)
        if [id(v) for v in graph.inputs] != [id(v) for v in inputs]:
            raise AssertionError("the graph's inputs changed while its weights were set aside")


def _upgrade_opset(model: ir.Model, opset: int, path: Path) -> tuple[ir.Model, list[str]]:
    """Raise the opset of the default domain; return the graph and a note if anything was tried."""
    if "" not in model.opset_imports and not any(n.domain == "" for n in model.graph.all_nodes()):
        # Classical estimators import the ONNX-ML domain alone; there is no node to convert.
        model.opset_imports[""] = opset
    current = model.opset_imports.get("", 1)
    if current >= opset:
        return model, []
    weights = _large_weights(model)
    # Before IR version 4 every initializer had to be an input as well.
    model.ir_version = max(model.ir_version or 4, 4)
    with _proto_without_weights(model) as proto:
        try:
            proto = onnx.version_converter.convert_version(proto, opset)
        except Exception as error:  # the converter raises RuntimeError and its own kinds alike
            if current >= OLDEST_OPSET:
                return model, [f"opset {current} kept: raising it to {opset} failed ({error})"]
            raise UnsupportedError(
                f"model {path}: opset {current} cannot be raised to {opset} ({error}); "
                f"export it again with opset {OLDEST_OPSET} or newer"
            ) from error
    upgraded = ir.from_proto(proto)
    # Opset 21 belongs to IR version 10.
    upgraded.ir_version = max(upgraded.ir_version or 0, 10)
    for value in [v for v in upgraded.graph.inputs if v.name in weights]:
        upgraded.graph.inputs.remove(value)
        value.const_value = weights[value.name or ""]
        upgraded.graph.register_initializer(value)
    return upgraded, [f"opset raised from {current} to {opset}"]


def infer_shapes(model: ir.Model) -> None:
    """Set the types and shapes of values, in place, where ONNX shape inference determines them."""
    with _proto_without_weights(model) as proto:
        for info in list(proto.graph.value_info):
            # Inference would keep an outdated shape instead of replacing it.
            proto.graph.value_info.remove(info)
        try:
            inferred = onnx.shape_inference.infer_shapes(proto)
            if not has_long_vector(inferred):
                inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
            return  # the last two: exceptions of C++'s library, where a node's body is damaged
    infos = {
        info.name: info
        for graph in graphs(inferred.graph)
        for info in (*graph.value_info, *graph.output)
    }
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in infos:
                _set_type(value, infos[value.name])


def _set_type(value: ir.Value, info: onnx.ValueInfoProto) -> None:
    """Set the element type and the shape of a value from a result of shape inference."""
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        return
    if tensor.elem_type:
        value.type = ir.TensorType(ir.DataType(tensor.elem_type))
    if tensor.HasField("shape"):
        value.shape = ir.Shape(
            [
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in tensor.shape.dim
            ]
        )


def bind_shapes(
    model: ir.Model,
    shapes: Mapping[str, tuple[int, ...]],
    batch_axes: Mapping[str, int | None] | None = None,
) -> None:
    """Replace symbolic input dimensions by the sizes in the data, then infer shapes again.

    A symbolic batch dimension stays, so that the batch size can vary.

    Args:
        model: changed in place.
        shapes: input name -> shape of one batch.
        batch_axes: input name -> axis of the batch; None: the first axis of every input.
    """
    axes = dict.fromkeys(shapes, 0) if batch_axes is None else batch_axes
    for value in model.graph.inputs:
        shape = shapes.get(value.name or "")
        if shape is None or value.shape is None or len(value.shape) != len(shape):
            continue
        value.shape = ir.Shape(
            [
                d if isinstance(d, int) or axis == axes[value.name or ""] else shape[axis]
                for axis, d in enumerate(value.shape)
            ]
        )
    infer_shapes(model)
