"""Products whose inputs get their grids while they run, in the forms ONNX Runtime fuses.

A MatMul or Gemm becomes DynamicQuantizeLinear, MatMulInteger, Cast, and the product with both
scales: one DynamicQuantizeMatMul, or MatMulIntegerToFloat where several layers read one input.
Scales multiplied one after the other, or Q and DQ with computed scales, are not fused and run
slower than floats. An LSTM becomes ONNX Runtime's own DynamicQuantizeLSTM.
"""

from typing import Protocol

import numpy as np
import onnx_ir as ir

from qtool.emitters.packing import Store
from qtool.graph.queries import attribute
from qtool.quant.plan import DynamicSite, QuantPlan
from qtool.quant.primitives import QuantParams

MICROSOFT = "com.microsoft"

Grid = tuple[ir.Value, ir.Value, ir.Value]  # codes, scale, zero point


class Emitter(Store, Protocol):
    """What these forms ask of an emitter."""

    graph: ir.Graph
    plan: QuantPlan

    def unique(self, base: str) -> str:
        """A name like ``base`` that nothing has."""

    def codes(self, name: str, params: QuantParams) -> ir.Value:
        """The codes that kernels read, as the file holds or unpacks them."""


def write_dynamic(make: Emitter) -> None:
    """Replace every node of ``plan.dynamic``; readers of its outputs see the new ones."""
    grids: dict[ir.Value, Grid] = {}
    for node in list(make.graph):
        site = make.plan.dynamic.get(node.name or "")
        if site is None:
            continue
        if site.op == "LSTM":
            _lstm(make, node, site)
        else:
            _product(make, node, site, grids)


def _product(make: Emitter, node: ir.Node, site: DynamicSite, grids: dict[ir.Value, Grid]) -> None:
    x, name = _given(node, 0), site.name
    if x not in grids:
        grids[x] = _grid_of(make, x, site.input)
    codes, scale, zero = grids[x]
    (weight,) = site.weights
    rows = _codes(make, weight, turned=bool(attribute(node, "transB", 0)))
    sums = make.step("MatMulInteger", [codes, rows, zero], f"{name}/sums")
    floats = make.step("Cast", [sums], f"{name}/floats", to=ir.DataType.FLOAT.value)
    column = make.constant(f"{weight}_scale", _params(make, weight).scale)
    factor = make.step("Mul", [scale, column], f"{name}/scale")
    result = make.step("Mul", [floats, factor], f"{name}/product")
    readers = [sums, factor]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        result = make.step("Add", [result, node.inputs[2]], f"{name}/sum")
        readers.append(result)
    _take_over(make, node, [(node.outputs[0], result)])
    for value, called in zip(readers, site.nodes, strict=False):
        if (reader := value.producer()) is not None:
            reader.name = called


def _grid_of(make: Emitter, x: ir.Value, name: str) -> Grid:
    codes = make.step("DynamicQuantizeLinear", [x], f"{name}_dynamic")
    node = codes.producer()
    if node is None:
        raise AssertionError("a new value has no producer")
    node.resize_outputs(3)
    _, scale, zero = node.outputs
    scale.name, zero.name = (make.unique(f"{name}_dynamic_{what}") for what in ("scale", "zero"))
    return codes, scale, zero


def _lstm(make: Emitter, node: ir.Node, site: DynamicSite) -> None:
    make.graph.opset_imports[MICROSOFT] = 1
    given: list[ir.Value | None] = [*node.inputs, *[None] * 8][:8]
    for position, name in enumerate(site.weights, 1):
        found, (directions, gates, _) = _params(make, name).scale, make.plan.codes[name].shape
        # [4 * hidden] or [] for both directions: the kernel wants one row, or number, for each.
        shape = [directions, gates] if found.ndim else [directions]
        scale = np.ascontiguousarray(np.broadcast_to(found, shape))
        given[position] = _codes(make, name, turned=True)
        given.append(make.constant(f"{name}_rows_scale", scale))
        given.append(make.constant(f"{name}_rows_zero", np.zeros(shape, np.int8)))
    known = [a for a in node.attributes.values() if a.name not in ("layout", "hidden_size")]
    known.append(ir.AttrInt64("hidden_size", make.plan.codes[site.weights[1]].shape[-1]))
    made = ir.Node(MICROSOFT, "DynamicQuantizeLSTM", given, known, num_outputs=3, name=site.name)
    make.graph.append(made)
    for new in made.outputs:
        new.name, new.type = "", ir.TensorType(ir.DataType.FLOAT)
    pairs = zip(node.outputs, made.outputs, strict=False)
    _take_over(make, node, [(old, new) for old, new in pairs if old.name])
    # Written in any case, since parity follows the states step by step; it costs nothing.
    made.outputs[0].name = site.outputs[0]


def _given(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    if value is None:
        raise AssertionError(f"{node.name} lost its input {position}")
    return value


def _params(make: Emitter, name: str) -> QuantParams:
    params = make.plan.params(name)
    if params is None:
        raise AssertionError(f"{name} has no grid")
    return params


def _codes(make: Emitter, name: str, turned: bool) -> ir.Value:
    """The codes of a weight, its last two axes exchanged where asked; folded at load."""
    codes = make.codes(name, _params(make, name))
    if not turned:
        return codes
    rank = make.plan.codes[name].ndim
    order = [*range(rank - 2), rank - 1, rank - 2]
    return make.step("Transpose", [codes], f"{name}_turned", perm=order)


def _take_over(make: Emitter, node: ir.Node, pairs: list[tuple[ir.Value, ir.Value]]) -> None:
    """Put new values in the places of old ones, names included, and drop the old node."""
    for old, new in pairs:
        shared = old.is_graph_output()
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=shared)
    make.graph.remove(node, safe=True)
    for old, new in pairs:
        new.name, new.shape, new.type = old.name, old.shape, old.type
