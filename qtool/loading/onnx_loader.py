"""ONNX files in: opset upgraded, constants lifted, nodes named, shapes inferred.

Opset is a loading matter: nothing behind this module changes it. Large weights never travel through
protobuf: they are taken out while the C++ converter and shape inference run, and put back after.
What lies in external data and how it stays there is told in ``big``.
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
from qtool.loading.cast_like import cast_outright
from qtool.loading.external_data import SMALL, resolve_external_data
from qtool.loading.float16 import widen
from qtool.loading.opset_upgrade import restore_meaning
from qtool.loading.unsupported import check_supported

# DequantizeLinear per channel needs 13; an upgrade that fails above it can be done without.
OLDEST_OPSET = 13

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
    """A model as read.

    Attributes:
        model: the graph, ready for rewrites.
        path: the float ONNX file, which verification runs.
        sha256: digest of what the user gave (hex).
        notes: what loading changed or could not do, one sentence each.
        name: what the user gave where that is not ``path``: a factory, or a torch file.
        size: bytes of ``path`` with its external data; 0 where that is just the file.
    """

    model: ir.Model
    path: Path
    sha256: str
    notes: tuple[str, ...]
    name: str = ""
    size: int = 0

    @property
    def shown(self) -> str:
        """The model as messages and the report call it."""
        return self.name or str(self.path)

    @property
    def big(self) -> bool:
        """Whether only one session with its weights may be alive at a time."""
        return self.size > files.EXTERNAL_BYTES


def load_model(path: Path, opset: int = 21) -> Loaded:
    """Read an ONNX file for quantization.

    Args:
        path: a ``.onnx`` file; external data is found beside it.
        opset: the default-domain opset wanted; a newer model keeps its own.

    Raises:
        ModelError: missing, empty or damaged file (exit 2).
        UnsupportedError: already quantized, or an opset that cannot be raised (exit 3).
    """
    model, parts = read_graph(path)
    check_not_quantized(model, path)
    model, notes = settle(model, opset, path)
    size = sum(part.stat().st_size for part in parts)
    return Loaded(model, path, files.digest_of(parts), tuple(notes), size=size)


def read_graph(path: Path) -> tuple[ir.Model, list[Path]]:
    """The graph of an ONNX file as it is, and the files it was read from; see ``big``.

    Raises:
        ModelError: missing, empty or damaged file (exit 2).
    """
    if not path.is_file():
        raise ModelError(f"model {path}: no such file; expected an .onnx file")
    try:
        model = ir.load(path.absolute())
    except Exception as error:  # protobuf and onnx_ir raise many kinds for damaged bytes
        raise ModelError(
            f"model {path}: not a readable ONNX file ({error}); export it again"
        ) from error
    if not len(model.graph) or not model.graph.outputs:
        raise ModelError(f"model {path}: the graph has no nodes or no outputs; export it again")
    parts = resolve_external_data(model, path.absolute())
    _check_wiring(model, path)
    return model, parts


def settle(model: ir.Model, opset: int, path: Path) -> tuple[ir.Model, list[str]]:
    """Bring a graph into the one form that everything behind loading knows.

    Returns:
        The graph and what was changed, one sentence each.

    Raises:
        UnsupportedError: its opset cannot be raised, or what it computes cannot be compared:
            random numbers or text (exit 3).
    """
    try:
        model.graph.sort()  # the runtime takes nodes in any order, the converter does not
    except ValueError as error:
        raise ModelError(f"model {path}: its nodes form a cycle; export it again") from error
    if model.functions:
        try:
            passes.InlinePass()(model)
        except Exception as error:  # a pass wraps whatever a function's body raises
            raise ModelError(
                f"model {path}: its functions cannot be put in place ({error}); export it again "
                "without them"
            ) from error
    passes.RemoveInitializersFromInputsPass()(model)
    before = model.opset_imports.get("", 1)
    model, notes = _upgraded(model, opset, path)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    name_everything(model)
    if model.opset_imports.get("", 1) > before:
        restore_meaning(model, before, path)
    if count := widen(model):
        notes.append(f"{count} tensors of 16-bit floats widened to float32")
    infer_shapes(model)
    check_supported(model, str(path))
    cast_outright(model)
    return model, notes


def check_not_quantized(model: ir.Model, path: Path) -> None:
    """Stop when the model already holds quantization operators.

    Raises:
        UnsupportedError: names the first such node and how many there are.
    """
    found = [n for n in model.graph.all_nodes() if n.op_type in QUANTIZED_OPS]
    if found:
        kinds = ", ".join(sorted({n.op_type for n in found}))
        raise UnsupportedError(
            f"model {path}: already quantized: {len(found)} nodes of kind {kinds}, the first is "
            f'"{found[0].name}"; give the float model it was made from, or add --requantize '
            "(requantize=True in Python) to turn it back to float first"
        )


def _check_wiring(model: ir.Model, path: Path) -> None:
    graph = model.graph
    given = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in (*node.inputs, *captured(node)):
            if value is None or value.producer() is not None or value in given:
                continue
            sparse = onnx.load(path, load_external_data=False).graph.sparse_initializer
            if value.name in [tensor.values.name for tensor in sparse]:
                raise UnsupportedError(
                    f'model {path}: the weights "{value.name}" are stored sparse; save them dense'
                )
            raise ModelError(
                f'model {path}: node "{node.name or node.op_type}" reads "{value.name}", which '
                "nothing makes; export it again"
            )


def _heavy(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Weights too large to travel through protobuf, by name."""
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes > SMALL
    }


@contextmanager
def _light(model: ir.Model) -> Iterator[onnx.ModelProto]:
    """A proto of the model in which large weights are inputs without data."""
    graph, heavy = model.graph, _heavy(model)
    inputs = list(graph.inputs)
    for name, tensor in heavy.items():
        value = graph.initializers.pop(name)
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        graph.inputs.append(value)
    try:
        yield ir.to_proto(model)
    finally:
        for name, tensor in heavy.items():
            value = next(v for v in reversed(graph.inputs) if v.name == name)
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.register_initializer(value)
        if [id(v) for v in graph.inputs] != [id(v) for v in inputs]:
            raise AssertionError("the graph's inputs changed while its weights were set aside")


def _upgraded(model: ir.Model, opset: int, path: Path) -> tuple[ir.Model, list[str]]:
    have = model.opset_imports.get("", 1)
    if have >= opset:
        return model, []
    heavy = _heavy(model)
    # The converter knows only the default domain's own history; IR 4 lets weights not be inputs.
    model.ir_version = max(model.ir_version or 4, 4)
    with _light(model) as proto:
        try:
            proto = onnx.version_converter.convert_version(proto, opset)
        except Exception as error:  # the converter raises RuntimeError and its own kinds alike
            if have >= OLDEST_OPSET:
                return model, [f"opset {have} kept: raising it to {opset} failed ({error})"]
            raise UnsupportedError(
                f"model {path}: opset {have} cannot be raised to {opset} ({error}); "
                f"export it again with opset {OLDEST_OPSET} or newer"
            ) from error
    upgraded = ir.from_proto(proto)
    upgraded.ir_version = max(upgraded.ir_version or 0, 10)
    for value in [v for v in upgraded.graph.inputs if v.name in heavy]:
        upgraded.graph.inputs.remove(value)
        value.const_value = heavy[value.name or ""]
        upgraded.graph.register_initializer(value)
    return upgraded, [f"opset raised from {have} to {opset}"]


def name_everything(model: ir.Model) -> None:
    """Give every node of every graph a unique name; names that exist and are unique stay."""
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes}
    seen: set[str] = set()
    for node in nodes:
        if not node.name or node.name in seen:
            base = node.name or f"{node.op_type}_{next(o.name for o in node.outputs)}"
            name, k = base, 1
            while name in taken:
                name, k = f"{base}_{k}", k + 1
            node.name = name
            taken.add(name)
        seen.add(node.name)


def infer_shapes(model: ir.Model) -> None:
    """Fill in dtypes and shapes of values in place, as far as the ONNX inference gets."""
    with _light(model) as proto:
        for info in list(proto.graph.value_info):
            # A stale shape would win over the inferred one.
            proto.graph.value_info.remove(info)
        try:
            inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except onnx.shape_inference.InferenceError:
            return
    found = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            if value.name in found:
                _take(value, found[value.name])


def _take(value: ir.Value, info: onnx.ValueInfoProto) -> None:
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


def bind_shapes(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Replace symbolic input dimensions by what the data showed, then infer shapes again.

    The first dimension stays symbolic where it was, so that the batch size remains free.

    Args:
        model: changed in place.
        shapes: input name -> shape of one batch.
    """
    for value in model.graph.inputs:
        seen = shapes.get(value.name or "")
        if seen is None or value.shape is None or len(value.shape) != len(seen):
            continue
        value.shape = ir.Shape(
            [
                d if isinstance(d, int) or axis == 0 else seen[axis]
                for axis, d in enumerate(value.shape)
            ]
        )
    infer_shapes(model)
