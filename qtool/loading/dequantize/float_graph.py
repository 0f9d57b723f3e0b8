"""The graph being turned back to floats: what its values stand for, and the few edits it needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.errors import UnsupportedError
from qtool.graph.edit import Names, add_initializer
from qtool.graph.queries import clip_limits, constant, readers, sole_reader
from qtool.loading.dequantize.affine import (
    ONE,
    Held,
    Scale,
    Zero,
    limits,
    monomial,
    numbers,
    same_zero,
    spread,
    static_shape,
)
from qtool.loading.dequantize.value_ranges import Ranges


class Floating:
    """A graph on its way back to floats.

    Attributes:
        held: what the integer values (and floats computed from codes) stand for.
        scalings: values made by a Mul that a constant weight in front of it may take over.
        cuts: Clips with a saturation that does no Relu's work: it cuts off outliers.
        widened: constants computed from codes, as the graph itself would.
        unique: gives a name, with a number behind it when the graph already uses it.
        ranges: between which numbers float values are known to lie.
        path: of the model, for messages.
    """

    def __init__(self, model: ir.Model, path: Path) -> None:
        self.model, self.path = model, path
        self.held: dict[ir.Value, Held] = {}
        self.scalings: list[ir.Node] = []
        self.cuts: list[ir.Node] = []
        self.widened: set[ir.Value] = set()
        self._made: dict[tuple[object, ...], ir.Value] = {}
        self.ranges = Ranges()
        self.unique = Names(model.graph).unique

    # -- edits

    def const(self, name: str, array: object, dtype: Any = np.float32) -> ir.Value:
        """A new initializer of the main graph, which all bodies see."""
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
        """Insert a node in front of another; returns its output, a float32.

        Args:
            before: the node that is being replaced, or that reads the result.
            op: the type.
            inputs: of the new node.
            attributes: Python values, or ``ir.Attr`` as they are.
            like: a value of the same shape.
            domain: of the op.
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
        """As :meth:`add`, with one output for each of ``like``."""
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

    def become(self, old: ir.Value, new: ir.Value) -> None:
        """Let ``new`` replace a node's output everywhere; an output of the graph keeps its name."""
        for reader, index in list(old.uses()):
            reader.replace_input_with(index, new)
        made = old.producer()
        if not old.is_graph_output() or made is None or made.graph is None:
            return
        graph, source = made.graph, new.producer()
        if source is None or source.graph is not graph or new.is_graph_output():
            new = self.add(made, "Identity", [new], like=old)
            new.type = old.type
        name, old.name = old.name, self.unique(f"{old.name}_replaced")
        new.name = name
        if new.shape is None:
            new.shape = old.shape
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new

    def refuse(self, node: ir.Node, why: str) -> UnsupportedError:
        """The error for a node that has no float form."""
        return UnsupportedError(
            f'model {self.path}: --requantize cannot turn "{node.name}" ({node.op_type}) back to '
            f"float: {why}; give the float model the file was made from"
        )

    # -- what values stand for

    def grid(
        self,
        value: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        axis: int = 1,
        block: int = 0,
    ) -> tuple[Scale, Zero]:
        """Scale and zero point as they broadcast against a value."""
        step = monomial(scale)
        shape = static_shape(value)
        known = numbers(zero) if zero is not None else np.zeros(())
        if not step.unknown:
            array = np.asarray(step.number)
            if shape or array.size > 1:
                array = spread(array, shape or (0,) * array.ndim, axis, block)
            step = Scale(array)
        if known is None:
            assert zero is not None
            return step, zero
        if known.size == 1:
            return step, known.reshape(())
        return step, spread(known, shape or (0,) * known.ndim, axis, block)

    def floats(
        self,
        node: ir.Node,
        codes: ir.Value,
        scale: ir.Value,
        zero: ir.Value | None,
        axis: int = 1,
        block: int = 0,
    ) -> ir.Value:
        """The float value that codes on a grid stand for.

        Args:
            node: reads the codes.
            codes: constant, computed, or an input of the model.
            scale, zero: the grid the node reads them on.
            axis, block: where the scale is an array.
        """
        key = (codes, scale, zero, axis, block, id(node.graph) if constant(codes) is None else 0)
        if key not in self._made:
            step, offset = self.grid(codes, scale, zero, axis, block)
            self._made[key] = self._floats(node, codes, step, offset)
        return self._made[key]

    def _floats(self, node: ir.Node, codes: ir.Value, scale: Scale, zero: Zero) -> ir.Value:
        array = numbers(codes)
        if array is not None and not scale.unknown and not isinstance(zero, ir.Value):
            return self.const(_float_name(codes), (array - zero) * scale.number)
        if not scale.unknown and not isinstance(zero, ir.Value):
            moved = self._moved_constant(codes, scale, zero)
            if moved is not None:
                return moved
        held = self.held.get(codes)
        if held is None:
            return self._decode(node, codes, scale, zero)
        if held.scale.equals(scale) and same_zero(held.zero, zero):
            return held.real
        if scale.unknown or held.scale.unknown or _computed(zero) or _computed(held.zero):
            raise self.refuse(node, f'it reads "{codes.name}" on another grid than it was made on')
        # The same codes read with another scale: a rescaling of what they stand for.
        return self._affine(node, held.real, scale.number / held.scale.number,
                            (held.zero - zero) * scale.number)  # fmt: skip

    def _moved_constant(self, codes: ir.Value, scale: Scale, zero: Zero) -> ir.Value | None:
        """Codes of a constant behind ops that move them: the constant itself becomes floats."""
        chain: list[ir.Node] = []
        value: ir.Value | None = codes
        while value is not None and (made := value.producer()) is not None:
            if made.op_type not in MOVING or sole_reader(value) is None or value in self.held:
                return None
            chain.append(made)
            value = made.inputs[0]
        array = numbers(value)
        if not chain or array is None or value is None or np.size(scale.number) != 1:
            return None
        chain[-1].replace_input_with(
            0, self.const(_float_name(value), (array - zero) * scale.number)
        )
        for moved in chain:
            moved.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return codes

    def _decode(self, node: ir.Node, codes: ir.Value, scale: Scale, zero: Zero) -> ir.Value:
        """Codes that come from outside, or from ops that compute in integers, in float ops."""
        if scale.unknown or isinstance(zero, ir.Value):
            raise self.refuse(node, f'"{codes.name}" has a scale that is computed at run time')
        out = self.add(node, "Cast", [codes], {"to": ir.DataType.FLOAT.value}, codes)
        lo, hi = limits(codes.dtype) if codes.dtype is not None else (-np.inf, np.inf)
        out = self._affine(node, out, scale.number, -zero * scale.number)
        self.ranges.known[out] = (lo - zero) * scale.number, (hi - zero) * scale.number
        return out

    def _affine(
        self, node: ir.Node, value: ir.Value, factor: np.ndarray, offset: np.ndarray
    ) -> ir.Value:
        """``value * factor + offset``, without what changes nothing."""
        if not np.all(factor == 1):
            value = self.add(node, "Mul", [value, self.const("factor", factor)], like=value)
        if np.any(offset):
            value = self.add(node, "Add", [value, self.const("offset", offset)], like=value)
        return value

    def define(self, out: ir.Value, real: ir.Value, scale: Scale, zero: Zero) -> None:
        """Say what an output stands for; where that is a plain float, it becomes it."""
        dtype = out.dtype or ir.DataType.FLOAT
        if dtype.is_floating_point() and scale.is_one and same_zero(zero, np.zeros(())):
            self.become(out, real)
            return
        self.held[out] = Held(real, scale, zero, dtype)

    def settle(self, node: ir.Node, real: ir.Value, scale: Scale) -> None:
        """A node's only output is ``real / scale``, a float: make it so."""
        if not scale.is_one:
            factor = self.const("scale", 1 / scale.number)
            real = self.add(node, "Mul", [real, factor], like=real)
            made = real.producer()
            if made is not None:
                self.scalings.append(made)
        self.become(node.outputs[0], real)

    def materialize(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """The value itself, computed in float ops, for a node that no float form is known for."""
        held = self.held[value]
        if held.scale.unknown or isinstance(held.zero, ir.Value):
            raise self.refuse(node, f'it reads "{value.name}", whose scale is computed at run time')
        key = (value, "codes", id(node.graph))
        if key not in self._made:
            self._made[key] = self._materialize(node, held, np.asarray(held.zero))
        return self._made[key]

    def _materialize(self, node: ir.Node, held: Held, zero: np.ndarray) -> ir.Value:
        exact = held.dtype.is_floating_point() and held.dtype.bitwidth >= 16
        out = held.real
        if not held.scale.is_one:
            out = self.add(node, "Div", [out, self.const("scale", held.scale.number)], like=out)
        if held.dtype.is_integer():
            out = self.add(node, "Round", [out], like=held.real)
        out = self._affine(node, out, np.ones(()), zero)
        if exact:
            return out
        if held.dtype.bitwidth < 32:
            ends = [self.const("end", end) for end in limits(held.dtype)]
            out = self.add(node, "Clip", [out, *ends], like=held.real)
        out = self.add(node, "Cast", [out], {"to": held.dtype.value}, held.real)
        out.type = ir.TensorType(held.dtype)
        return out

    # -- saturation

    def clipped(
        self, node: ir.Node, real: ir.Value, scale: Scale, zero: Zero, dtype: ir.DataType
    ) -> ir.Value:
        """A float value with the saturation of the grid it was rounded on.

        Left out where the value provably stays inside, to within a step of the grid.

        Args:
            node: rounds the value.
            real: the value.
            scale, zero: the grid.
            dtype: of its codes.
        """
        if scale.unknown or isinstance(zero, ir.Value):
            return real  # a grid made from the value itself saturates nothing
        first, last = limits(dtype)
        return self.between(node, real, (first - zero) * scale.number,
                            (last - zero) * scale.number, np.asarray(scale.number))  # fmt: skip

    def between(
        self, node: ir.Node, real: ir.Value, lo: np.ndarray, hi: np.ndarray, step: np.ndarray
    ) -> ir.Value:
        """``real`` limited to [lo, hi], where it is not known to lie there within ``step``."""
        array = numbers(real)
        if array is not None:
            if np.all(array >= lo - step) and np.all(array <= hi + step):
                return real
            return self.const(str(real.name), np.clip(array, lo, hi))
        low, high = self.ranges.of(real)
        try:
            below, above = bool(np.any(low < lo - step)), bool(np.any(high > hi + step))
        except ValueError:  # limits of another shape
            below = above = True
        if not below and not above:
            return real
        made, joined = real.producer(), False
        if (
            made is not None
            and made.op_type in ("Relu", "Clip")
            and made.inputs[0] is not None
            and all(reader is node for reader in readers(real))
        ):
            first, last = clip_limits(made)
            if first is not None and last is not None:
                real, joined = made.inputs[0], True  # one Clip in place of two
                lo, hi = np.maximum(lo, first), np.minimum(hi, last)
                below, above = below or first > -np.inf, above or last < np.inf
        out = self._limit(node, real, lo if below else None, hi if above else None)
        self.ranges.known[out] = np.maximum(lo, low), np.minimum(hi, high)
        as_relu = (below and np.any(lo >= 0)) or (above and np.any(hi <= 0))
        if not joined and not as_relu and (limiting := out.producer()) is not None:
            self.cuts.append(limiting)
        return out

    def _limit(
        self, node: ir.Node, real: ir.Value, lo: np.ndarray | None, hi: np.ndarray | None
    ) -> ir.Value:
        if hi is None and lo is not None and not np.any(lo):
            return self.add(node, "Relu", [real], like=real)
        if any(np.size(end) > 1 for end in (lo, hi) if end is not None):
            for op, end in (("Max", lo), ("Min", hi)):
                if end is not None:
                    real = self.add(node, op, [real, self.const("end", end)], like=real)
            return real
        ends = [None if end is None else self.const("end", np.reshape(end, ())) for end in (lo, hi)]
        while ends[-1] is None:
            ends.pop()
        return self.add(node, "Clip", [real, *ends], like=real)


# Ops that only move the elements of their first input.
MOVING = {
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather",
    "GatherND", "GatherElements", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
}  # fmt: skip


def _computed(zero: Zero) -> bool:
    return isinstance(zero, ir.Value)


def _float_name(codes: ir.Value) -> str:
    name = str(codes.name).removesuffix("_quantized")
    return name if name != codes.name else f"{name}_float"


__all__ = ["MOVING", "ONE", "Floating"]
