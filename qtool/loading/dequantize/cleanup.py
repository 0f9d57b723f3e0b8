"""Cleanup after the conversion to floats.

Dequantized graphs contain patterns of integer kernels. They are replaced by what exporters write,
which the rewrites and the annotation recognize.
"""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from qtool.graph.queries import attribute, clip_limits, constant, dims, rank, sole_reader
from qtool.loading.dequantize.float_graph import FloatGraphBuilder

# Runtimes fuse a Clip after these operators into the kernel, in float and in integer form.
CLIP_FUSED_OPS = ("Conv", "ConvTranspose", "Gemm", "Add")


def clean_up(builder: FloatGraphBuilder) -> None:
    """Fold scales and biases into products, remove outlier Clips and restore global pooling.

    Args:
        builder: after the conversion of all nodes; its graph is changed in place.
    """
    _absorb_scales(builder)
    remove_unused(builder.model)  # unused readers would hide that a value has one reader only
    _absorb_biases(builder)
    _remove_outlier_clips(builder)
    remove_unused(builder.model)
    _merge_clips(builder)
    _restore_global_average_pools(builder)


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that no graph output depends on."""
    passes.RemoveUnusedNodesPass()(model)


def _absorb_biases(builder: FloatGraphBuilder) -> None:
    """Fold an Add of a constant [1, C, 1, ...] after a Conv without bias into its bias.

    ConvInteger has no bias input, so converters add the bias after it.
    """
    for node in list(builder.model.graph):
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
        node.replace_input_with(2, builder.const(f"{node.name}/bias", bias.reshape(-1)))
        builder.replace_value(reader.outputs[0], node.outputs[0])


def _remove_outlier_clips(builder: FloatGraphBuilder) -> None:
    """Remove outlier Clips where no runtime would fuse them; see :mod:`dequantize`."""
    for clip in builder.outlier_clips:
        value, out = clip.inputs[0], clip.outputs[0]
        node = value.producer() if value is not None else None
        reader = sole_reader(out)
        # A BatchNormalization can be folded into the layer only if no Clip is in between.
        foldable = reader is not None and reader.op_type == "BatchNormalization"
        fused = node is not None and node.op_type in CLIP_FUSED_OPS and not foldable
        if clip.op_type != "Clip" or value is None or out.is_graph_output():
            continue
        if not fused or sole_reader(value) is not clip:
            builder.replace_value(out, value)


def _absorb_scales(builder: FloatGraphBuilder) -> None:
    """Fold a Mul by a scale after a product with a constant weight into that weight.

    Dynamic quantization multiplies by the weight's scale last, so until here the weight holds
    centred codes.
    """
    for scaling in builder.scale_muls:
        product, factor = scaling.inputs[0], constant(scaling.inputs[1])
        node = product.producer() if product is not None else None
        if node is None or factor is None or product is None or sole_reader(product) is not scaling:
            continue
        index = next((k for k in (1, 0) if constant(node.inputs[k]) is not None), None)
        if node.op_type not in ("MatMul", "Conv") or index is None or len(node.inputs) > 2:
            continue
        weight = node.inputs[index]
        scale = _broadcast_factor(node.op_type, factor, weight, index)
        if scale is None or weight is None:
            continue
        array = np.asarray(constant(weight), np.float64)
        node.replace_input_with(index, builder.const(str(weight.name), array * scale))
        builder.replace_value(scaling.outputs[0], product)


def _broadcast_factor(
    op: str, factor: np.ndarray, weight: ir.Value | None, index: int
) -> np.ndarray | None:
    """Reshape the scale of a product's output so that it broadcasts against the weight.

    Args:
        op: "MatMul" or "Conv".
        factor: [] or per output channel, as it broadcasts against the output.
        weight: of the product.
        index: of the weight among the inputs.

    Returns:
        The factor, or None where no factor of the weight has the same effect.
    """
    count = rank(weight) or 0
    if factor.size == 1:
        return factor.reshape(())
    if op == "Conv" and index == 1:
        return factor.reshape(-1, *[1] * (count - 1)) if factor.ndim == count - 1 else None
    columns = factor.ndim == 1 or all(d == 1 for d in factor.shape[:-1])
    return factor.reshape(-1) if op == "MatMul" and index == 1 and columns else None


def _merge_clips(builder: FloatGraphBuilder) -> None:
    """Merge an outlier Clip and the Relu or Clip that alone reads it into one Clip."""
    for clip in builder.outlier_clips:
        # Clips that were removed above belong to no graph.
        reader = sole_reader(clip.outputs[0]) if clip.graph is not None else None
        if reader is None or clip.op_type != "Clip" or reader.op_type not in ("Relu", "Clip"):
            continue
        (a, b), (c, d) = clip_limits(clip), clip_limits(reader)
        if a is None or b is None or c is None or d is None or max(a, c) >= min(b, d):
            continue
        limits = [
            None if np.isinf(limit) else builder.const("end", limit)
            for limit in (max(a, c), min(b, d))
        ]
        merged = builder.add(reader, "Clip", [clip.inputs[0], *limits], like=reader.outputs[0])
        builder.replace_value(reader.outputs[0], merged)


def _restore_global_average_pools(builder: FloatGraphBuilder) -> None:
    """Replace an integer mean, as qtool emits it, by GlobalAveragePool.

    The pattern is Transpose to channels last, Reshape to [N, area, C], MatMul with a constant
    [1, area] of entries 1 / area on the left, Reshape to [N, C, 1, ...].
    """
    for node in list(builder.model.graph):
        array = constant(node.inputs[0]) if node.op_type == "MatMul" else None
        if array is None or array.ndim != 2 or array.shape[0] != 1 or node.inputs[1] is None:
            continue
        rows = node.inputs[1].producer()
        transpose = rows.inputs[0].producer() if rows is not None and rows.inputs[0] else None
        back = sole_reader(node.outputs[0])
        if transpose is None or back is None or (rows.op_type, back.op_type) != ("Reshape",) * 2:  # type: ignore[union-attr]
            continue
        source = transpose.inputs[0]
        shape = dims(source) or ()
        last_first = (0, *range(2, len(shape)), 1)
        area = 1 / np.float64(array.shape[1])
        if (
            source is not None
            and transpose.op_type == "Transpose"
            and attribute(transpose, "perm") == last_first
            and np.allclose(array, area, rtol=1e-5)
            and dims(back.outputs[0]) == (*shape[:2], *[1] * (len(shape) - 2))
            and np.prod([d for d in shape[2:] if isinstance(d, int)]) == array.shape[1]
        ):
            mean = builder.add(back, "GlobalAveragePool", [source], like=back.outputs[0])
            builder.replace_value(back.outputs[0], mean)
