"""Integer-only network of a plan: codes to codes by int32 sums, integer multipliers and shifts.

Reference for hardware without floats. Everything that needs real numbers (multipliers, tables) is
computed when the network is built; at run time only the graph's inputs are quantized and its
outputs dequantized. Each layer's codes differ from the emitted file's by at most one step.

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", arXiv:1712.05877.
"""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import torch

from qtool.annotation.integer_only import check_no_float_nodes
from qtool.graph.queries import by_name, constant, is_constant, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import QuantParams, mean_factor, quantize
from qtool.runtime.executor import Executor
from qtool.simulation.fixed_point import ROUNDINGS
from qtool.simulation.integer_kernels import BUILDERS, Kernel, Work, call, zero_of
from qtool.simulation.ort_kernels import limits_of

T = torch.Tensor


class IntegerKernels:
    """Kernels of the sites and data-movement nodes of one frozen plan, in integers; built once."""

    def __init__(self, model: ir.Model, plan: QuantPlan, rounding: str = "half_even") -> None:
        """Prepare a plan.

        Args:
            model: the rewritten graph.
            plan: frozen.
            rounding: ``half_even`` as ONNX, ``half_away`` as gemmlowp, ``half_up`` as N2D2.
        """
        if rounding not in ROUNDINGS:
            raise AssertionError(f"found rounding {rounding}, expected {', '.join(ROUNDINGS)}")
        self.model, self.plan, self.rounding = model, plan, rounding
        self.nodes = nodes_by_name(model.graph)
        self.opset = model.opset_imports.get("", 21)
        self._kernels: dict[str, Kernel] = {}

    def site(self, site: Site, codes: Mapping[str, np.ndarray]) -> T:
        """Compute the output of a site: codes where it has a grid, else float32 values.

        Args:
            site: one of the plan's.
            codes: codes of its activation inputs by value name, any integer type.
        """
        inputs = {
            n: torch.from_numpy(a.astype(np.int32)) for n, a in codes.items() if n in site.inputs
        }
        output = self.integers(site, inputs)
        return output if site.output in self.plan.grid_of else self.floats(site, output)

    def integers(self, site: Site, codes: Mapping[str, T]) -> T:
        """Compute the output of a site: int32 codes, or sums of products where it writes floats.

        Args:
            site: one of the plan's.
            codes: int32 codes of its activation inputs by value name.
        """
        if site.name not in self._kernels:
            self._kernels[site.name] = BUILDERS[site.op](self._work(site))
        inputs = []
        for name, _ in self._operands(site):
            if name not in codes:
                constants = self.plan.codes[name].astype(np.int32)
                inputs.append(torch.from_numpy(np.atleast_1d(constants)))
            else:
                inputs.append(codes[name])
        return self._kernels[site.name](inputs)

    def floats(self, site: Site, sums: T) -> T:
        """Dequantize sums of products of a site without an output grid, in floats.

        Args:
            site: one of the plan's.
            sums: as :meth:`integers` returns them.
        """
        x = self.params(site.inputs[0])
        if site.weight is None:
            node = self.nodes[site.name]
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            size = [int(d) for d in (shape or ())[2:] if isinstance(d, int)]
            return sums.float() * float(mean_factor(x, size))
        scale = torch.from_numpy(np.asarray(x.scale * self.params(site.weight).scale))
        along = [1] * sums.ndim
        along[1 if site.op.startswith("Conv") else -1] = -1
        return sums.float() * (scale.reshape(along) if scale.ndim else scale)

    def data_movement(
        self, name: str, codes: "np.ndarray | T", computed: Mapping[str, T] | None = None
    ) -> list[T]:
        """Compute the outputs of a node that moves codes; zeros that it adds are zero points.

        Args:
            name: of the node.
            codes: of its first input.
            computed: its other inputs that are not constants, such as a shape, by name.
        """
        node = self.nodes[name]
        source = node.inputs[0]
        zero = zero_of(self.params((source.name or "") if source is not None else ""))
        others: list[T | None] = []
        # Pad's third input is its fill value, a float: left out, since zero is the default.
        for value in node.inputs[1 : 2 if node.op_type == "Pad" else None]:
            array = constant(value)
            if array is not None:
                others.append(torch.from_numpy(np.array(array)))
            else:
                others.append(None if value is None else (computed or {})[value.name or ""])
        data = torch.from_numpy(codes) if isinstance(codes, np.ndarray) else codes
        # Pad's default fill is the number 0, which is the code z: subtract z before, add it after.
        outputs = call(node, self.opset, [data.to(torch.int32) - zero, *others])
        return [part + zero for part in outputs]

    def params(self, name: str) -> QuantParams:
        """Return the grid of a value, which must have one."""
        params = self.plan.params(name)
        if params is None:
            raise AssertionError(f"{name} has no grid")
        return params

    def _operands(self, site: Site) -> list[tuple[str, QuantParams]]:
        """Return the activation operands of a site in its node's order, repeated if read twice."""
        operands = []
        for value in self.nodes[site.name].inputs:
            name = value.name or "" if value is not None else ""
            params = self.plan.params(name)
            if params is not None and name not in (site.weight, site.bias):
                operands.append((name, params))
        return operands

    def _work(self, site: Site) -> Work:
        y, codes = self.plan.params(site.output), self.plan.codes
        return Work(
            self.nodes[site.name],
            self.opset,
            tuple(params for _, params in self._operands(site)),
            y,
            (0, 0) if y is None else limits_of(self.nodes, site, y),
            self.rounding,
            None if site.weight is None else codes[site.weight],
            None if site.bias is None else codes[site.bias],
            None if site.weight is None else self.params(site.weight),
        )


class IntegerNetwork:
    """Whole network in integers, from input codes to output codes.

    Float operators may precede the first codes and follow the last; between two integer kernels
    they are an error, which names the node.
    """

    def __init__(self, model: ir.Model, plan: QuantPlan, rounding: str = "half_even") -> None:
        """Prepare a frozen plan; see IntegerKernels for the arguments.

        Raises:
            UnsupportedError: a float operator lies between integer kernels (names it).
        """
        self.kernels = IntegerKernels(model, plan, rounding)
        self.model, self.plan = model, plan
        self.executor = Executor(model)
        check_no_float_nodes(model, plan)
        values = by_name(model.graph)
        inner = plan.integer_nodes
        made = {o.name for n in model.graph if n.name in inner for o in n.outputs}
        read = {v.name or "" for n in model.graph if n.name in inner for v in n.inputs if v}
        self.entries = tuple(
            name
            for name in plan.grid_of
            if name in read
            and name not in made
            and name not in plan.codes
            and not is_constant(values[name])
        )
        last = {s.nodes[-1]: s.output for s in plan.sites.values()}
        self.exits = tuple(
            o.name or ""
            for n in model.graph
            if n.name in last or n.name in plan.data_movement_ops
            for o in n.outputs
            if o.is_graph_output() or any(u.name not in inner for u, _ in o.uses())
        )

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the outputs of the network by name, float32 where the float network's are.

        Args:
            feeds: the graph's inputs, floats.
        """
        with torch.inference_mode():
            codes = self.run(self.quantized(feeds))
            values = self.dequantized(codes)
            outputs = self.executor({**feeds, **values})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    def quantized(self, feeds: Mapping[str, np.ndarray]) -> dict[str, T]:
        """Quantize the values where the integer part begins; return int32 codes by name."""
        floats = self.executor(feeds, None, self.entries)
        return {
            name: quantize(x, self.kernels.params(name)).to(torch.int32)
            for name, x in floats.items()
        }

    def run(self, codes: Mapping[str, T]) -> dict[str, T]:
        """Run the integer part: all codes by value name, and sums of products without a grid.

        Args:
            codes: int32, of ``entries``.
        """
        computed = dict(codes)
        for node in self.model.graph:
            name = node.name or ""
            if name in self.plan.sites:
                site = self.plan.sites[name]
                computed[site.output] = self.kernels.integers(site, computed)
            elif name in self.plan.data_movement_ops:
                others = [v.name or "" for v in node.inputs[1:] if v and not is_constant(v)]
                # A shape may depend on the shape of codes: fed with these, no float is computed.
                shapes = self.executor(computed, None, others) if others else {}
                source = node.inputs[0].name if node.inputs[0] is not None else ""
                outs = self.kernels.data_movement(name, computed[source or ""], shapes)
                computed.update({o.name or "": t for o, t in zip(node.outputs, outs, strict=True)})
        return computed

    def dequantized(self, codes: Mapping[str, T]) -> dict[str, T]:
        """Dequantize the codes and sums where the integer part ends; return float32 by name."""
        sites = {s.output: s for s in self.plan.sites.values()}
        values = {}
        for name in self.exits:
            params = self.plan.params(name)
            if params is None:
                values[name] = self.kernels.floats(sites[name], codes[name])
            else:
                values[name] = (codes[name].float() - zero_of(params)) * float(params.scale)
        return values
