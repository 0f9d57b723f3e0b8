"""The graph under conversion: the float values that its codes represent, and edits of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.edit import Names, add_initializer
from qtool.graph.queries import constant, sole_reader
from qtool.loading.dequantize.affine import (
    ONE,
    QuantizedValue,
    Scale,
    ZeroPoint,
    broadcast_scale,
    code_range,
    constant_array,
    parse_scale,
    same_zero_point,
    static_shape,
)
from qtool.loading.dequantize.value_ranges import ValueRanges


class FloatGraphBuilder:
    """Converts the values of one quantized graph to float values, in place.

    Attributes:
        model: the model under conversion.
        path: of the model, for messages.
        quantized_values: quantized value (or float computed from codes) -> the float value, scale
            and zero point that it has.
        scale_muls: Muls by a scale that may be folded into the constant weight in front of them.
        outlier_clips: Clips that only cut off values beyond the calibrated range, unlike a Relu.
        widened: constants that were computed from constant codes with the graph's own operators.
        ranges: value ranges of the float values.
        unique: returns a name that the graph does not use yet.
    """

    def __init__(self, model: ir.Model, path: Path) -> None:
        self.model, self.path = model, path
        self.quantized_values: dict[ir.Value, QuantizedValue] = {}
        self.scale_muls: list[ir.Node] = []
        self.outlier_clips: list[ir.Node] = []
        self.widened: set[ir.Value] = set()
        self._cache: dict[tuple[object, ...], ir.Value] = {}
        self.ranges = ValueRanges()
        self.unique = Names(model.graph).unique

    # -- edits

    def const(self, name: str, array: object, dtype: Any = np.float32) -> ir.Value:
        """Add an initializer to the main graph, where the bodies of all nodes can read it."""
        return add_initializer(self.model.graph, self.unique(name), np.asarray(array, dtype))

    def add(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        like: ir.Value | None = None,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node with one float32 output in front of another node.

        Args:
            before: the node that is being replaced, or that reads the result.
            op: operator type.
            inputs: of the new node, None for an omitted one.
            attributes: name -> Python value or ``ir.Attr``.
            like: a value of the output's shape, None where it is unknown.
            domain: of the operator.

        Returns:
            The output.
        """
        return self.add_several(before, op, inputs, attributes, [like], domain)[0]

    def add_several(
        self,
        before: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None,
        like: Sequence[ir.Value | None],
        domain: str = "",
    ) -> Sequence[ir.Value]:
        """Insert a node as :meth:`add` does, with one output for each value of ``like``."""
        graph = before.graph
        if graph is None:
            raise AssertionError(f"{before.name} belongs to no graph")
        attrs = [
            v if isinstance(v, ir.Attr) else ir.convenience.convert_attribute(k, v)
            for k, v in (attributes or {}).items()
        ]
        name = self.unique(f"{before.name}/{op}")
        node = ir.Node(domain, op, inputs, attrs, num_outputs=len(like), name=name)
        for out, old in zip(node.outputs, like, strict=True):
            left_out = old is not None and not old.name
            out.name = "" if left_out else self.unique(f"{node.name}_output")
            out.type = ir.TensorType(ir.DataType.FLOAT)
            out.shape = None if old is None else old.shape
        graph.insert_before(before, node)
        return node.outputs

    def replace_value(self, old: ir.Value, new: ir.Value) -> None:
        """Replace a node's output by another value; an output of the graph keeps its name."""
        for reader, index in list(old.uses()):
            reader.replace_input_with(index, new)
        made = old.producer()
        if not old.is_graph_output() or made is None or made.graph is None:
            return
        graph, source = made.graph, new.producer()
        if source is None or source.graph is not graph or new.is_graph_output():
            # A constant, an input or another output cannot take the name: copy it.
            new = self.add(made, "Identity", [new], like=old)
            new.type = old.type
        name, old.name = old.name, self.unique(f"{old.name}_replaced")
        new.name = name
        if new.shape is None:
            new.shape = old.shape
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new

    def unsupported(self, node: ir.Node, why: str) -> UnsupportedError:
        """Return the error for a node that has no float form; ``why`` completes a sentence."""
        return UnsupportedError(
            f'model {self.path}: --requantize cannot turn "{node.name}" ({node.op_type}) back to '
            f"float: {why}; give the float model the file was made from"
        )

    # -- float values of codes

    def grid(
        self,
        value: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        axis: int = 1,
        block: int = 0,
    ) -> tuple[Scale, ZeroPoint]:
        """Read a scale and zero point so that they broadcast against a value.

        Args:
            value: the codes.
            scale: [], [C] or blocked.
            zero: as ``scale``, None for 0.
            axis: of the channels or blocks.
            block: values per block; 0 when not blocked.
        """
        step = parse_scale(scale)
        shape = static_shape(value)
        offset = constant_array(zero) if zero is not None else np.zeros(())
        if not step.dynamic:
            array = np.asarray(step.constant)
            if shape or array.size > 1:
                array = broadcast_scale(array, shape or (0,) * array.ndim, axis, block)
            step = Scale(array)
        if offset is None:
            assert zero is not None
            return step, zero
        if offset.size == 1:
            return step, offset.reshape(())
        return step, broadcast_scale(offset, shape or (0,) * offset.ndim, axis, block)

    def dequantize(
        self,
        node: ir.Node,
        codes: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        axis: int = 1,
        block: int = 0,
    ) -> ir.Value:
        """Return the float value of codes: (codes - zero) * scale.

        Args:
            node: reads the codes.
            codes: constant, computed, or an input of the model.
            scale: with which the node reads the codes.
            zero: zero point with which the node reads the codes, None for 0.
            axis: of the channels or blocks, where the scale is an array.
            block: values per block; 0 when not blocked.
        """
        # Computed values are cached per graph: a body's values are not visible outside of it.
        key = (codes, scale, zero, axis, block, id(node.graph) if constant(codes) is None else 0)
        if key not in self._cache:
            step, offset = self.grid(codes, scale, zero, axis, block)
            self._cache[key] = self._dequantize(node, codes, step, offset)
        return self._cache[key]

    def _dequantize(
        self, node: ir.Node, codes: ir.Value, scale: Scale, zero: ZeroPoint
    ) -> ir.Value:
        array = constant_array(codes)
        if array is not None and not scale.dynamic and not isinstance(zero, ir.Value):
            return self.const(_float_name(codes), (array - zero) * scale.constant)
        if not scale.dynamic and not isinstance(zero, ir.Value):
            dequantized = self._dequantize_initializer(codes, scale, zero)
            if dequantized is not None:
                return dequantized
        quantized = self.quantized_values.get(codes)
        if quantized is None:
            return self._decode_integers(node, codes, scale, zero)
        if quantized.scale.equals(scale) and same_zero_point(quantized.zero_point, zero):
            return quantized.real
        if (
            scale.dynamic
            or quantized.scale.dynamic
            or _is_dynamic(zero)
            or _is_dynamic(quantized.zero_point)
        ):
            raise self.unsupported(
                node, f'it reads "{codes.name}" with another scale than it was quantized with'
            )
        # real' = (real / s + z - z') * s' = real * s' / s + (z - z') * s'
        factor = scale.constant / quantized.scale.constant
        offset = (quantized.zero_point - zero) * scale.constant
        return self._add_affine(node, quantized.real, factor, offset)

    def _dequantize_initializer(
        self, codes: ir.Value, scale: Scale, zero: ZeroPoint
    ) -> ir.Value | None:
        """Dequantize the constant at the start of a chain of data movement operators.

        Returns:
            The end of the chain, ``codes`` itself, now a float; None where there is no such chain.
        """
        chain: list[ir.Node] = []
        value: ir.Value | None = codes
        while value is not None and (made := value.producer()) is not None:
            if (
                made.op_type not in DATA_MOVEMENT_OPS
                or sole_reader(value) is None
                or value in self.quantized_values
            ):
                return None
            chain.append(made)
            value = made.inputs[0]
        array = constant_array(value)
        if not chain or array is None or value is None or np.size(scale.constant) != 1:
            return None
        chain[-1].replace_input_with(
            0, self.const(_float_name(value), (array - zero) * scale.constant)
        )
        for link in chain:
            link.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return codes

    def _decode_integers(
        self, node: ir.Node, codes: ir.Value, scale: Scale, zero: ZeroPoint
    ) -> ir.Value:
        """Dequantize codes of a model input or of integer arithmetic with float operators."""
        if scale.dynamic or isinstance(zero, ir.Value):
            raise self.unsupported(node, f'"{codes.name}" has a scale that is computed at run time')
        out = self.add(node, "Cast", [codes], {"to": ir.DataType.FLOAT.value}, codes)
        lo, hi = code_range(codes.dtype) if codes.dtype is not None else (-np.inf, np.inf)
        out = self._add_affine(node, out, scale.constant, -zero * scale.constant)
        self.ranges.limits[out] = (lo - zero) * scale.constant, (hi - zero) * scale.constant
        return out

    def _add_affine(
        self, node: ir.Node, value: ir.Value, factor: np.ndarray, offset: np.ndarray
    ) -> ir.Value:
        """Add ``value * factor + offset``, without a Mul by 1 or an Add of 0."""
        if not np.all(factor == 1):
            value = self.add(node, "Mul", [value, self.const("factor", factor)], like=value)
        if np.any(offset):
            value = self.add(node, "Add", [value, self.const("offset", offset)], like=value)
        return value

    def record(self, out: ir.Value, real: ir.Value, scale: Scale, zero: ZeroPoint) -> None:
        """Record the float value of an output, or replace the output if it is that float itself."""
        dtype = out.dtype or ir.DataType.FLOAT
        if dtype.is_floating_point() and scale.is_one and same_zero_point(zero, np.zeros(())):
            self.replace_value(out, real)
            return
        self.quantized_values[out] = QuantizedValue(real, scale, zero, dtype)

    def set_float_output(self, node: ir.Node, real: ir.Value, scale: Scale) -> None:
        """Replace a node's only output by the float ``real / scale``."""
        if not scale.is_one:
            factor = self.const("scale", 1 / scale.constant)
            real = self.add(node, "Mul", [real, factor], like=real)
            made = real.producer()
            if made is not None:
                self.scale_muls.append(made)
        self.replace_value(node.outputs[0], real)

    def compute_codes(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """Compute codes from their float value, for a node that has no float form.

        codes = clip(round(real / scale) + zero point), in float operators and a Cast
        """
        quantized = self.quantized_values[value]
        if quantized.scale.dynamic or isinstance(quantized.zero_point, ir.Value):
            raise self.unsupported(
                node, f'it reads "{value.name}", whose scale is computed at run time'
            )
        key = (value, "codes", id(node.graph))
        if key not in self._cache:
            self._cache[key] = self._compute_codes(
                node, quantized, np.asarray(quantized.zero_point)
            )
        return self._cache[key]

    def _compute_codes(
        self, node: ir.Node, quantized: QuantizedValue, zero: np.ndarray
    ) -> ir.Value:
        exact = quantized.dtype.is_floating_point() and quantized.dtype.bitwidth >= 16
        out = quantized.real
        if not quantized.scale.is_one:
            out = self.add(
                node, "Div", [out, self.const("scale", quantized.scale.constant)], like=out
            )
        if quantized.dtype.is_integer():  # Cast does the rounding to float8
            out = self.add(node, "Round", [out], like=quantized.real)
        out = self._add_affine(node, out, np.ones(()), zero)
        if exact:
            return out
        if quantized.dtype.bitwidth < 32:  # the limits of int32 are no float32 numbers
            limits = [self.const("end", limit) for limit in code_range(quantized.dtype)]
            out = self.add(node, "Clip", [out, *limits], like=quantized.real)
        out = self.add(node, "Cast", [out], {"to": quantized.dtype.value}, quantized.real)
        out.type = ir.TensorType(quantized.dtype)
        return out


# Operators that only copy or reorder elements of their first input.
DATA_MOVEMENT_OPS = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather",
    "GatherND", "GatherElements", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip


def _is_dynamic(zero: ZeroPoint) -> bool:
    """Return whether a zero point is computed at run time."""
    return isinstance(zero, ir.Value)


def _float_name(codes: ir.Value) -> str:
    """Return the name that a weight had before a converter added "_quantized"."""
    name = str(codes.name).removesuffix("_quantized")
    return name if name != codes.name else f"{name}_float"


__all__ = ["DATA_MOVEMENT_OPS", "ONE", "FloatGraphBuilder"]
