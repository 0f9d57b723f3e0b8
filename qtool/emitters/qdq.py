"""Emit QDQ ONNX: QuantizeLinear and DequantizeLinear around the nodes that the runtime fuses.

A value keeps its name, its codes are ``<name>_quantized``, and its readers get
``<name>_dequantized``: a viewer shows the network with its original names.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.emitters.copy import copy_model
from qtool.emitters.dynamic import write_dynamic
from qtool.emitters.joined_groups import join_groups
from qtool.emitters.packing import widen
from qtool.emitters.simplify import compact, separate_activations
from qtool.emitters.weight_only import float_weights
from qtool.emitters.weight_zero_point import shift_weight_codes
from qtool.graph.edit import Names, add_initializer
from qtool.graph.queries import by_name, dims, name_of, nodes_by_name
from qtool.quant.clipping import code_limits
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import PerChannel, QuantParams, mean_factor
from qtool.targets.target import PACKING, OpRule, Target


def emit_qdq(model: ir.Model, plan: QuantPlan, target: Target) -> ir.Model:
    """Return a copy of the model with the plan's codes, and Q and DQ around each site.

    Args:
        model: the rewritten float graph; unchanged.
        plan: frozen: every value on a grid has QuantParams, every weight and bias has codes.
        target: its rules name the ops that work directly on codes, and the packed forms.
    """
    # Opset 25 has int2, which needs version 13 of the file format; 10 is that of opset 21.
    copy = copy_model(model, plan, 13 if model.opset_imports.get("", 0) >= 25 else 10)
    _Emitter(copy.graph, plan, target).run()
    return copy


# Float ops through which ONNX Runtime moves a DequantizeLinear.
LOOKED_THROUGH = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")


class _Emitter:
    """The graph being edited, and the initializers added so far."""

    def __init__(self, graph: ir.Graph, plan: QuantPlan, target: Target) -> None:
        self.graph = graph
        self.plan = plan
        self.integer = plan.integer_nodes
        self.target = target
        self.requantizes = target.requantizes
        opset = graph.opset_imports.get("", 0)
        self.packing = [form for form in target.packing if PACKING[form] <= opset]
        self.zero_point_shift = shift_weight_codes(graph, plan, target)
        self.joined_groups = join_groups(graph, plan, target)
        self.on_codes = {
            name
            for name, node in nodes_by_name(graph).items()
            if name in plan.data_movement_ops
            and self._works_on_codes(node, target.ops[node.op_type])
        }
        self.constants: dict[str, ir.Value] = {}
        self.quantizers: set[ir.Node] = set()
        self.limits: dict[str | None, tuple[int, int]] = {}
        self.unique = Names(graph).unique

    def _works_on_codes(self, node: ir.Node, rule: OpRule) -> bool:
        """Return True when a data movement op needs no Q and DQ around it."""
        spec = self.plan.spec(name_of(node.outputs[0]))
        return rule.on_codes and (spec is None or spec.bits <= rule.on_codes_bits)

    def run(self) -> None:
        """Edit the graph, then remove nodes and initializers without readers."""
        self._drop_unread()
        self._drop_absorbed()
        write_dynamic(self)
        self._drop_unread()
        order = [v for v in by_name(self.graph).values() if v.name in self.plan.grid_of]
        codes: dict[ir.Value, ir.Value] = {}
        for value in order:
            if value.name in self.plan.codes:
                self._constant(value)
            elif not self._is_written_as_codes(value):
                codes[value] = self._quantize(value)
        for node in list(self.graph):
            if node.name in self.on_codes:
                self._move_to_codes(node, codes)
        for site in self.plan.sites.values():
            if site.op == "GlobalAveragePool" and site.output not in self.plan.grid_of:
                self._integer_mean(nodes_by_name(self.graph)[site.name], codes)
        for value, code in codes.items():
            self._dequantize(value, code)
        if "scales" in self.packing:
            compact(self.graph)
        separate_activations(self.graph, self.plan, self.target)
        self.graph.sort()
        self._drop_unread()

    def _drop_unread(self) -> None:
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]

    def _is_written_as_codes(self, value: ir.Value) -> bool:
        """Return True when an op that works on codes writes this value."""
        producer = value.producer()
        return producer is not None and producer.name in self.on_codes

    def _drop_absorbed(self) -> None:
        """Remove the Relu or Clip of each site, and record its limits in codes.

        Codes are clipped to them only where the grid is wider.
        """
        nodes = nodes_by_name(self.graph)
        for site in self.plan.sites.values():
            params = self.plan.params(site.output)
            if len(site.nodes) < 2 or params is None:
                continue
            first, last = nodes[site.nodes[0]], nodes[site.nodes[-1]]
            limits = code_limits(last, params)
            if limits is None:
                continue
            name, out = last.outputs[0].name, last.outputs[0]
            self.limits[name] = limits
            ir.convenience.replace_all_uses_with(
                out, first.outputs[0], replace_graph_outputs=out.is_graph_output()
            )
            self.graph.remove(last, safe=True)
            first.outputs[0].name = name
            first.outputs[0].shape = out.shape

    def constant(self, name: str, data: np.ndarray | ir.Tensor) -> ir.Value:
        """Add an initializer, or return the one that was added under this name before."""
        if name not in self.constants:
            self.constants[name] = add_initializer(self.graph, self.unique(name), data)
        return self.constants[name]

    def _scale(self, name: str) -> tuple[ir.Value, ir.Value]:
        """Return scale and zero point of a value's grid; values on one grid share them."""
        params, grid = self.plan.qparams(name), self.plan.grid_of[name]
        zero = params.zero_point + self.zero_point_shift.get(name, 0)
        return (
            self.constant(f"{grid}_scale", params.scale),
            self.constant(f"{grid}_zero_point", zero.astype(params.container)),
        )

    def _quantize(self, value: ir.Value) -> ir.Value:
        """Quantize a value; codes of a grid narrower than its container are clipped behind it."""
        scale, zero = self._scale(name_of(value))
        node = ir.Node(
            "", "QuantizeLinear", [value, scale, zero], name=f"{value.name}_QuantizeLinear"
        )
        self.quantizers.add(node)
        spec = self.plan.qparams(name_of(value)).spec
        low, high = self.limits.get(value.name, (spec.qmin, spec.qmax))
        full = np.iinfo(spec.container)
        # A narrow signed grid excludes one code of its container: no Clip for that one.
        if low <= full.min + spec.symmetric * spec.signed and high >= full.max:
            return self._add(node, f"{value.name}_quantized", zero.dtype, value.shape)
        wide = self._add(node, f"{value.name}_unclipped", zero.dtype, value.shape)
        bounds = [
            self.constant(f"code_{code}_of_{spec.container}", np.asarray(code, spec.container))
            for code in (low, high)
        ]
        clip = ir.Node("", "Clip", [wide, *bounds], name=f"{value.name}_Clip")
        return self._add(clip, f"{value.name}_quantized", zero.dtype, value.shape)

    def _add(
        self, node: ir.Node, out: str, dtype: ir.DataType | None, shape: ir.Shape | None
    ) -> ir.Value:
        node.name = self.unique(node.name or "")
        self.graph.append(node)
        value = node.outputs[0]
        value.name, value.shape = self.unique(out), shape
        value.type = ir.TensorType(dtype or ir.DataType.FLOAT)
        return value

    def _move_to_codes(self, node: ir.Node, codes: dict[ir.Value, ir.Value]) -> None:
        """Make a data movement op read and write codes; a Pad fills with the zero point."""
        source = node.inputs[0]
        if source is None:
            raise AssertionError(f"{node.name} lost its input")
        dtype = codes[source].dtype
        _, zero = self._scale(name_of(source))
        node.replace_input_with(0, codes[source])
        if node.op_type == "Pad":
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, zero)
        for out in node.outputs:
            # The old value stays for its readers, which are rewired later; a new one is the codes.
            code = ir.Value(
                name=self.unique(f"{out.name}_quantized"),
                type=ir.TensorType(dtype or ir.DataType.UINT8),
                shape=out.shape,
            )
            codes[out] = code
        self._swap_outputs(node, codes)

    def _swap_outputs(self, node: ir.Node, codes: dict[ir.Value, ir.Value]) -> None:
        attributes = list(node.attributes.values())
        new = ir.Node(
            node.domain,
            node.op_type,
            list(node.inputs),
            attributes,
            outputs=[codes[out] for out in node.outputs],
            name=node.name,
        )
        self.graph.insert_before(node, new)

    def _integer_mean(self, node: ir.Node, codes: dict[ir.Value, ir.Value]) -> None:
        """Replace a GlobalAveragePool that writes floats by (ones @ codes) * scale / area.

        A Transpose puts channels last, the runtime's own layout, so that two transposes cancel.
        """
        source, out = node.inputs[0], node.outputs[0]
        shape = dims(source)
        if source is None or shape is None:
            raise AssertionError(f"{node.name} has an input of unknown shape")
        size = [int(str(d)) for d in shape[2:]]
        area, channels = int(np.prod(size)), int(str(shape[1]))
        code = codes[source]
        _, zero = self._scale(name_of(source))
        factor = mean_factor(self.plan.qparams(name_of(source)), size)

        def step(op: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
            attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
            new = ir.Node("", op, inputs, attrs, name=f"{node.name}/{op}")
            return self._add(new, f"{node.name}/{op}_output", None, None)

        def constant_of(name: str, array: object, dtype: type) -> ir.Value:
            return self.constant(f"{node.name}/{name}", np.asarray(array, dtype))

        rank = len(shape)
        last = step("Transpose", [code], perm=[0, *range(2, rank), 1])
        rows = step("Reshape", [last, constant_of("rows", [0, area, channels], np.int64)])
        ones = constant_of("ones", np.ones((1, area)), np.uint8)
        # OpenVINO refuses a product whose zero point is left out: its shape has no rank.
        no_shift = constant_of("ones_zero_point", 0, np.uint8)
        total = step("MatMulInteger", [ones, rows, no_shift, zero])
        floats = step("Cast", [total], to=ir.DataType.FLOAT.value)
        mean = step("Mul", [floats, constant_of("factor", factor, np.float32)])
        restored = constant_of("shape", [-1, channels, *[1] * (rank - 2)], np.int64)
        result = step("Reshape", [mean, restored])
        for value, kind in ((last, code.dtype), (rows, code.dtype), (total, ir.DataType.INT32)):
            value.type = ir.TensorType(kind or ir.DataType.UINT8)
        reshape = result.producer()
        if reshape is not None:
            # The name by which the report and the parity check find the last node of the pool.
            reshape.name = f"{node.name}/restore"
        ir.convenience.replace_all_uses_with(
            out, result, replace_graph_outputs=out.is_graph_output()
        )
        self.graph.remove(node, safe=True)
        result.name, result.shape = out.name, out.shape

    def _dequantize(self, value: ir.Value, code: ir.Value) -> None:
        """Dequantize a value for its readers in integers, or for all if integers wrote it."""
        producer = value.producer()
        written_as_codes = producer is not None and producer.name in self.on_codes
        written_in_integers = producer is not None and producer.name in self.integer
        uses = [
            (node, index)
            for node, index in value.uses()
            if node not in self.quantizers
            and node.name not in self.on_codes
            and (node.name in self.integer or written_in_integers)
        ]
        output = value.is_graph_output() and written_in_integers
        if written_as_codes and producer is not None:
            replaced = producer
        guarded = [use for use in uses if self._would_be_requantized(use[0])]
        if guarded:
            out = self._dequantize_by_hand(value, code)
            for reader, index in guarded:
                uses.remove((reader, index))
                reader.replace_input_with(index, out)
        for reader, index in [use for use in uses if use[0].op_type in ("Shape", "Size")]:
            uses.remove((reader, index))
            reader.replace_input_with(index, code)
        if uses or output:
            scale, zero = self._scale(name_of(value))
            node = ir.Node(
                "",
                "DequantizeLinear",
                [code, scale, zero],
                name=f"{value.name}_DequantizeLinear",
            )
            out = self._add(node, f"{value.name}_dequantized", ir.DataType.FLOAT, value.shape)
            for reader, index in uses:
                reader.replace_input_with(index, out)
            if output:
                self._become_output(value, out)
        # None: a Split has been removed at the first of its outputs.
        if written_as_codes and replaced.graph is not None:
            self.graph.remove(replaced, safe=False)

    def _would_be_requantized(self, reader: ir.Node) -> bool:
        """Return True for a float node that the runtime fuses with a DequantizeLinear in front.

        ONNX Runtime moves it through ops that only move values, to one that ends in Q.
        """
        if reader.name in self.integer:
            return False
        if reader.op_type not in LOOKED_THROUGH:
            return reader.op_type in self.requantizes
        return any(
            self._would_be_requantized(behind)
            for out in reader.outputs
            for behind, _ in out.uses()
            if behind.op_type in LOOKED_THROUGH
            or any(self.plan.params(name_of(v)) is not None for v in behind.outputs if v.name)
        )

    def _dequantize_by_hand(self, value: ir.Value, code: ir.Value) -> ir.Value:
        """Compute DequantizeLinear, bit for bit, in ops that the runtime does not fuse."""
        name = name_of(value)
        params, grid = self.plan.qparams(name), self.plan.grid_of[name]
        to = ir.AttrInt64("to", ir.DataType.FLOAT.value)
        out = code
        steps: list[tuple[str, list[ir.Value], list[ir.Attr]]] = [("Cast", [], [to])]
        if params.zero_point:
            zero = self.constant(f"{grid}_zero", params.zero_point.astype(np.float32))
            steps.append(("Sub", [zero], []))
        steps.append(("Mul", [self._scale(name)[0]], []))
        for op, operands, attributes in steps:
            node = ir.Node("", op, [out, *operands], attributes, name=f"{value.name}/{op}")
            out = self._add(node, f"{value.name}/{op}_output", ir.DataType.FLOAT, value.shape)
        return out

    def _become_output(self, value: ir.Value, out: ir.Value) -> None:
        name = value.name
        for index, graph_output in enumerate(self.graph.outputs):
            if graph_output is value:
                self.graph.outputs[index] = out
        value.name = f"{name}_float"
        out.name = name

    def _constant(self, value: ir.Value) -> None:
        """Add the codes of an initializer, and dequantize them for its readers."""
        name = name_of(value)
        params = self.plan.qparams(name)
        codes = self.codes(name, params)
        scale, zero = self._scale(name)
        axis = (
            params.spec.granularity.axis
            if isinstance(params.spec.granularity, PerChannel)
            else None
        )
        if name in self.plan.weight_only:
            floats = float_weights(self, name, codes, self.plan.codes[name].shape, params)
            for reader, index in list(value.uses()):
                if reader.name not in self.integer:
                    reader.replace_input_with(index, floats)
            if not value.uses():
                return
        # The zero point of int32 is always 0; leaving it out saves four bytes a channel.
        inputs = [codes, scale] if params.spec.bits == 32 else [codes, scale, zero]
        attributes = [] if axis is None else [ir.AttrInt64("axis", axis)]
        node = ir.Node("", "DequantizeLinear", inputs, attributes, name=f"{name}_DequantizeLinear")
        out = self._add(node, f"{name}_dequantized", ir.DataType.FLOAT, codes.shape)
        for reader, index in list(value.uses()):
            if reader.name in self.integer:
                reader.replace_input_with(index, out)

    def codes(self, name: str, params: QuantParams) -> ir.Value:
        """Add the codes of an initializer, packed if the target can; return the unpacked value."""
        array = self.plan.codes[name].astype(params.container, copy=False)
        shift = self.zero_point_shift.get(name, 0)
        codes = widen(self, name, array, params, self.packing, shift)
        codes.type, codes.shape = (
            ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            ir.Shape(array.shape),
        )
        joined = self.joined_groups.get(name)
        return joined.with_zeros(self, name, codes, params, shift) if joined else codes

    def step(self, op: str, inputs: Sequence[ir.Value], out: str, **attributes: Any) -> ir.Value:
        """Add a node; return its output, named ``out`` or after it, without a type."""
        attrs = [ir.convenience.convert_attribute(k, v) for k, v in attributes.items()]
        node = ir.Node("", op, inputs, attrs, name=self.unique(f"{out}/{op}"))
        self.graph.append(node)
        node.outputs[0].name = self.unique(out)
        return node.outputs[0]
