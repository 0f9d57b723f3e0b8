"""Dequantize weight-only codes for float ops; the runtime folds that to floats at load."""

import numpy as np
import onnx_ir as ir

from qtool.emitters.packing import Store
from qtool.quant.primitives import PerBlock, QuantParams, align


def float_weights(
    store: Store, name: str, codes: ir.Value, shape: tuple[int, ...], params: QuantParams
) -> ir.Value:
    """Compute DequantizeLinear in ops that the runtime folds at load and does not fuse.

    y = (codes - zero_point) * scale

    Args:
        store: receives constants and nodes.
        name: name of the initializer.
        codes: value of its codes.
        shape: shape of the codes.
        params: their grid.

    Returns:
        The float value, in the shape of the codes.
    """
    granularity = params.spec.granularity
    out = store.step("Cast", [codes], f"{name}/floats", to=ir.DataType.FLOAT.value)
    if params.zero_point.any():
        zero = store.constant(f"{name}_zero", align(params, np.empty(shape))[1])
        out = store.step("Sub", [out, zero], f"{name}/centred")
    if isinstance(granularity, PerBlock) and shape[granularity.axis] % granularity.size == 0:
        at, size = granularity.axis, granularity.size
        split = [*shape[:at], shape[at] // size, size, *shape[at + 1 :]]
        rows = store.constant(f"{name}_blocks", np.asarray(split, np.int64))
        out = store.step("Reshape", [out, rows], f"{name}/blocks")
        column = store.constant(f"{name}_scale_column", np.expand_dims(params.scale, at + 1))
        out = store.step("Mul", [out, column], f"{name}/scaled")
        whole = store.constant(f"{name}_shape", np.asarray(shape, np.int64))
        out = store.step("Reshape", [out, whole], f"{name}_widened")
    else:
        scale = align(params, np.empty(shape, np.float32))[0]
        column = store.constant(f"{name}_scale_column", scale)
        out = store.step("Mul", [out, column], f"{name}_widened")
    out.type, out.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    return out
