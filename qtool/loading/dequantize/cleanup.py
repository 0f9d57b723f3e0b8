"""What turning a graph back to floats leaves behind, put into the form that exporters write."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qtool.graph.queries import attribute, clip_limits, constant, dims, rank, sole_reader
from qtool.loading.dequantize.float_graph import Floating

# Runtimes take a Clip behind these into their own kernel, in floats and in integers.
LIMITED = ("Conv", "ConvTranspose", "Gemm", "Add")


def tidy(work: Floating) -> None:
    """Complete products with their scale and bias, and means of integers, in place."""
    _absorb_scales(work)
    clean(work.model)  # so that the sole reader of a value is seen
    _absorb_biases(work)
    _drop_cuts(work)
    clean(work.model)
    _join_limits(work)
    _restore_means(work)


def clean(model: ir.Model) -> None:
    """Drop nodes and constants that nothing reads any more."""
    passes.RemoveUnusedNodesPass()(model)


def _absorb_biases(work: Floating) -> None:
    """A Conv's bias that integer kernels had to add behind it, as [1, C, 1, ...]."""
    for node in list(work.model.graph):
        reader = sole_reader(node.outputs[0])
        if node.op_type != "Conv" or len(node.inputs) > 2 or reader is None:
            continue
        if reader.op_type != "Add":
            continue
        other = next((v for v in reader.inputs if v is not node.outputs[0]), None)
        made = other.producer() if other is not None else None
        bias = constant(other)
        if made is not None and made.op_type == "Reshape":
            array, to = constant(made.inputs[0]), constant(made.inputs[1])
            bias = None if array is None or to is None else array.reshape(to)
        weight = dims(node.inputs[1])
        if bias is None or weight is None:
            continue
        if bias.shape != (1, weight[0], *[1] * (len(weight) - 2)):
            continue
        node.resize_inputs(3)
        node.replace_input_with(2, work.const(f"{node.name}/bias", bias.reshape(-1)))
        work.become(reader.outputs[0], node.outputs[0])


def _drop_cuts(work: Floating) -> None:
    """Keep a cut of outliers only where it costs nothing; see the text of ``requantize``."""
    for cut in work.cuts:
        value, out = cut.inputs[0], cut.outputs[0]
        node = value.producer() if value is not None else None
        reader = sole_reader(out)
        completed = reader is not None and reader.op_type == "BatchNormalization"
        vanishes = node is not None and node.op_type in LIMITED and not completed
        if cut.op_type != "Clip" or value is None or out.is_graph_output():
            continue
        if not vanishes or sole_reader(value) is not cut:
            work.become(out, value)


def _absorb_scales(work: Floating) -> None:
    """Put the scale behind a product with a constant into that constant.

    Dynamic quantization multiplies with the weight's scale last; the weight itself was left as
    integers until then.
    """
    for scaling in work.scalings:
        product, factor = scaling.inputs[0], constant(scaling.inputs[1])
        node = product.producer() if product is not None else None
        if node is None or factor is None or product is None or sole_reader(product) is not scaling:
            continue
        index = next((k for k in (1, 0) if constant(node.inputs[k]) is not None), None)
        if node.op_type not in ("MatMul", "Conv") or index is None or len(node.inputs) > 2:
            continue
        weight = node.inputs[index]
        shaped = _along(node.op_type, factor, weight, index)
        if shaped is None or weight is None:
            continue
        array = np.asarray(constant(weight), np.float64)
        node.replace_input_with(index, work.const(str(weight.name), array * shaped))
        work.become(scaling.outputs[0], product)


def _along(op: str, factor: np.ndarray, weight: ir.Value | None, index: int) -> np.ndarray | None:
    """The scale of a product's result as it broadcasts against its weight; None where none does."""
    count = rank(weight) or 0
    if factor.size == 1:
        return factor.reshape(())
    if op == "Conv" and index == 1:
        return factor.reshape(-1, *[1] * (count - 1)) if factor.ndim == count - 1 else None
    columns = factor.ndim == 1 or all(d == 1 for d in factor.shape[:-1])
    return factor.reshape(-1) if op == "MatMul" and index == 1 and columns else None


def _join_limits(work: Floating) -> None:
    """One Clip for a Relu or Clip behind a cut that nothing else reads."""
    for cut in work.cuts:
        reader = sole_reader(cut.outputs[0]) if cut.graph is not None else None
        if reader is None or cut.op_type != "Clip" or reader.op_type not in ("Relu", "Clip"):
            continue
        (a, b), (c, d) = clip_limits(cut), clip_limits(reader)
        if a is None or b is None or c is None or d is None or max(a, c) >= min(b, d):
            continue
        ends = [None if np.isinf(end) else work.const("end", end) for end in (max(a, c), min(b, d))]
        joined = work.add(reader, "Clip", [cut.inputs[0], *ends], like=reader.outputs[0])
        work.become(reader.outputs[0], joined)


def _restore_means(work: Floating) -> None:
    """Transpose, Reshape, a row of equal numbers times it, Reshape: qtool's own integer mean."""
    for node in list(work.model.graph):
        array = constant(node.inputs[0]) if node.op_type == "MatMul" else None
        if array is None or array.ndim != 2 or array.shape[0] != 1 or node.inputs[1] is None:
            continue
        rows = node.inputs[1].producer()
        moved = rows.inputs[0].producer() if rows is not None and rows.inputs[0] else None
        back = sole_reader(node.outputs[0])
        if moved is None or back is None or (rows.op_type, back.op_type) != ("Reshape",) * 2:  # type: ignore[union-attr]
            continue
        source = moved.inputs[0]
        shape = dims(source) or ()
        last_first = (0, *range(2, len(shape)), 1)
        area = 1 / np.float64(array.shape[1])
        if (
            source is not None
            and moved.op_type == "Transpose"
            and attribute(moved, "perm") == last_first
            and np.allclose(array, area, rtol=1e-5)
            and dims(back.outputs[0]) == (*shape[:2], *[1] * (len(shape) - 2))
            and np.prod([d for d in shape[2:] if isinstance(d, int)]) == array.shape[1]
        ):
            mean = work.add(back, "GlobalAveragePool", [source], like=back.outputs[0])
            work.become(back.outputs[0], mean)
