"""Integer kernels of ONNX Runtime's CPU provider, reproduced to the last bit, one site at a time.

Accumulators are integers in float32 (float64 where a sum may pass 2**24), so every sum is exact.
The float steps of requantization follow the order of operations of the runtime's kernels, which are
named at each function; docs/parity.md says how each order was verified.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import attribute, by_name, constant, nodes_by_name, weight_axis
from qtool.quant.clipping import code_limits
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import QuantParams, align, mean_factor
from qtool.runtime.ops.table import options_of, select
from qtool.runtime.tensor_cache import TensorCache

# float32 has 24 bits of significand: integers up to this are exact.
EXACT_SUM = 2**24

Codes = torch.Tensor


class OrtKernels:
    """Kernels of the sites of one plan, on codes; weights are converted once."""

    def __init__(self, model: ir.Model, plan: QuantPlan) -> None:
        self.model = model
        self.plan = plan
        self.nodes = nodes_by_name(model.graph)
        self.values = by_name(model.graph)
        self._weights = TensorCache()

    def site(self, site: Site, codes: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Compute the output of a site: codes where it has a grid, else float32 values.

        Args:
            site: one of the plan's.
            codes: codes of its activation inputs by value name, any integer type.
        """
        node = self.nodes[site.name]
        with torch.inference_mode():
            y = self.plan.params(site.output)
            if site.weight is not None:
                output = self._weighted(site, node, codes)
                return output if y is None else output.clamp(*limits_of(self.nodes, site, y))
            inputs, grids = [], []
            for value in node.inputs:
                if value is not None and (params := self.plan.params(value.name or "")) is not None:
                    array = codes.get(value.name or "", self.plan.codes.get(value.name or ""))
                    inputs.append(torch.from_numpy(np.asarray(array, np.float32)))
                    grids.append(params)
            if y is None:
                return float_mean(inputs[0], grids[0])
            output = KERNELS[node.op_type](node, inputs, grids, y)
            return output.clamp(*limits_of(self.nodes, site, y))

    def data_movement(
        self, name: str, codes: np.ndarray, computed: Mapping[str, torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Compute the outputs of a node that moves codes; zeros that it adds are zero points.

        Args:
            name: of the node.
            codes: of its first input.
            computed: its other inputs that are not constants, such as a shape, by name.
        """
        node = self.nodes[name]
        source = node.inputs[0]
        params = self.plan.params(source.name or "") if source is not None else None
        if params is None:
            raise AssertionError(f"{name} moves codes but its input has no grid")
        arrays = [constant(v) for v in node.inputs[1:]]
        others = [None if a is None else torch.from_numpy(np.array(a)) for a in arrays]
        for k, value in enumerate(node.inputs[1:]):
            if others[k] is None and value is not None and computed is not None:
                others[k] = computed[value.name or ""]
        # Pad's default fill is the number 0, which is the code z: subtract z before, add it after.
        centred = torch.from_numpy(codes.astype(np.float32)) - float(params.zero_point)
        with torch.inference_mode():
            outputs = self._call(node, [centred, *others])
        return [part + float(params.zero_point) for part in outputs]

    def _call(self, node: ir.Node, inputs: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
        function = select(node, self.model.opset_imports.get(node.domain, 1))
        options = None if function is None else options_of(node, function)
        if function is None or options is None:
            raise AssertionError(f"{node.op_type} is not in the operator table")
        outputs = function(*inputs, **options)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    def _grid(self, name: str) -> QuantParams:
        params = self.plan.params(name)
        if params is None:
            raise AssertionError(f"{name} has no grid")
        return params

    def _weighted(self, site: Site, node: ir.Node, codes: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Compute a Conv, Gemm or MatMul: exact sums, one float32 multiplier per channel.

        ``round(float32(sum + bias) * float32(float32(s_x * s_w) / s_y)) + z_y``

        Source: ONNX Runtime kernels QLinearConv, QLinearMatMul and QGemm; MlasRequantizeOutput.
        """
        x, w = self.plan.params(site.inputs[0]), self.plan.params(site.weight or "")
        y = self.plan.params(site.output)
        if x is None or w is None:
            raise AssertionError(f"{site.name} has an operand without a grid")
        shifted = torch.from_numpy(codes[site.inputs[0]].astype(np.float32)) - float(x.zero_point)
        acc = self._accumulate(site, node, shifted)
        # Channels lie along axis 1 of a convolution's output and along the last of a product's.
        shape = [1] * acc.ndim
        shape[1 if node.op_type.startswith("Conv") else -1] = -1
        total = acc.to(torch.int64)
        if site.bias is not None:
            total = total + torch.from_numpy(self.plan.codes[site.bias].astype(np.int64)).reshape(
                shape
            )
        # int32 wraps as the kernel's accumulator does; then the first rounding, to float32.
        floats = total.to(torch.int32).to(torch.float32)
        # s_x * s_w is rounded to float32 before it is divided by s_y, as the kernels prepare it.
        scale = x.scale * w.scale
        if y is None:
            return floats * _along(scale, shape)
        return requantize(floats * _along(scale / y.scale, shape), y)

    def _accumulate(self, site: Site, node: ir.Node, x: torch.Tensor) -> torch.Tensor:
        """Sum integer products exactly, as a float tensor, without bias."""
        name = site.weight or ""

        def shifted_weight() -> torch.Tensor:
            codes = self.plan.codes[name].astype(np.float64)
            codes = codes - align(self._grid(name), codes)[1]
            others = tuple(a for a in range(codes.ndim) if a != weight_axis(node))
            # 255: the largest |x - z_x| of an 8-bit activation, so a bound of every partial sum.
            wide = np.abs(codes).sum(others).max() * 255 >= EXACT_SUM
            return torch.from_numpy(codes.astype(np.float64 if wide else np.float32))

        weight = self._weights(name, shifted_weight)
        inputs: list[torch.Tensor | None] = [x.to(weight.dtype), weight]
        return self._call(node, inputs)[0]


def limits_of(nodes: Mapping[str, ir.Node], site: Site, y: QuantParams) -> tuple[int, int]:
    """Return the smallest and largest code of a site: its grid's, cut by a folded Relu or Clip."""
    low, high = y.spec.qmin, y.spec.qmax
    for name in site.nodes[1:]:
        limits = code_limits(nodes[name], y)
        if limits is not None:
            low, high = max(low, limits[0]), min(high, limits[1])
    return low, high


def _along(scale: np.ndarray, shape: Sequence[int]) -> torch.Tensor:
    tensor = torch.from_numpy(np.asarray(scale, np.float32))
    return tensor.reshape(list(shape)) if tensor.ndim else tensor


def requantize(x: torch.Tensor, y: QuantParams) -> Codes:
    """Round half to even, add the zero point, saturate.

    Source: MlasRequantizeOutput and MlasQuantizeLinear of ONNX Runtime.
    """
    return (x.round() + float(y.zero_point)).clamp(y.spec.qmin, y.spec.qmax)


def _after_zero_point(x: torch.Tensor, y: QuantParams) -> Codes:
    """Add the zero point in float32, round half to even, saturate.

    On a tie the result is an even code; that of :func:`requantize` is an even number plus z.

    Source: the kernels of QLinearAdd, QLinearMul and QLinearAveragePool.
    """
    return (x + float(y.zero_point)).round().clamp(y.spec.qmin, y.spec.qmax)


def _ratio(a: QuantParams, y: QuantParams) -> float:
    return float(a.scale / y.scale)


def _fma(a: torch.Tensor, b: float, c: torch.Tensor) -> torch.Tensor:
    """Compute ``a * b + c`` of float32 numbers with one rounding, as the FMA instruction does."""
    # The product is exact in float64, and the sum's rounding there is far below float32's.
    return (a.double() * b + c.double()).float()


def _add(node: ir.Node, x: list[Codes], grids: list[QuantParams], y: QuantParams) -> Codes:
    """Compute ``round(fma(a, r_a, fma(b, r_b, z_y - fma(z_a, r_a, z_b * r_b))))``, r = s / s_y.

    Source: ONNX Runtime kernel QLinearAdd; MlasQLinearAdd, which fuses multiply and add.
    """
    (first, second), (a, b) = x, grids
    if _repeats(first, second):
        # QLinearAdd passes the repeated operand as the second, and the formula is not symmetric.
        first, second, a, b = second, first, b, a
    ra, rb = _ratio(a, y), _ratio(b, y)
    rest = torch.tensor(np.float32(rb) * np.float32(b.zero_point))
    both = _fma(torch.tensor(np.float32(a.zero_point)), ra, rest)
    inner = _fma(second, rb, float(y.zero_point) - both)
    return _fma(first, ra, inner).round().clamp(y.spec.qmin, y.spec.qmax)


def _repeats(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Return whether broadcasting repeats one element of ``a`` along the last axis of ``b``."""
    dims = max(a.ndim, b.ndim)
    for axis in range(1, dims + 1):
        sizes = [t.shape[-axis] if axis <= t.ndim else 1 for t in (a, b)]
        if sizes != [1, 1]:
            return sizes[0] == 1
    return False


def _mul(node: ir.Node, x: list[Codes], grids: list[QuantParams], y: QuantParams) -> Codes:
    """Compute ``round((a - z_a) * (b - z_b) * float32(s_a * s_b / s_y) + z_y)``.

    Source: ONNX Runtime kernel QLinearMul; MlasQLinearMul.
    """
    a, b = grids
    scale = float((a.scale * b.scale) / y.scale)
    product = (x[0] - float(a.zero_point)) * (x[1] - float(b.zero_point))
    return _after_zero_point(product * scale, y)


def _values(x: Codes, grid: QuantParams) -> torch.Tensor:
    return (x - float(grid.zero_point)) * float(grid.scale)


def _by_table(function: Callable[[ir.Node, torch.Tensor], torch.Tensor]) -> Callable[..., Codes]:
    """Wrap a float function as a kernel that looks each of the 256 codes up in a table.

    Entries are ``round(f((q - z_x) * s_x) / s_y) + z_y``.

    Source: ONNX Runtime kernels QLinearLeakyRelu and QLinearSigmoid.
    """

    def kernel(node: ir.Node, x: list[Codes], grids: list[QuantParams], y: QuantParams) -> Codes:
        values = function(node, _values(x[0], grids[0]))
        return requantize(values / float(y.scale), y)

    return kernel


def _leaky(node: ir.Node, values: torch.Tensor) -> torch.Tensor:
    slope = float(attribute(node, "alpha", 0.01))
    return torch.where(values >= 0, values, values * slope)


def _sigmoid(node: ir.Node, values: torch.Tensor) -> torch.Tensor:
    # Rounded from float64, so that the table does not depend on torch's float32 approximation.
    return torch.sigmoid(values.double()).float()


def _concat(node: ir.Node, x: list[Codes], grids: list[QuantParams], y: QuantParams) -> Codes:
    """Requantize each operand to the output's grid and concatenate; copy those on that grid.

    Source: ONNX Runtime kernel QLinearConcat, which uses a table for each operand.
    """
    axis = int(attribute(node, "axis", 0))
    parts = []
    for codes, grid in zip(x, grids, strict=True):
        same = grid.scale == y.scale and grid.zero_point == y.zero_point
        parts.append(codes if same else requantize(_values(codes, grid) / float(y.scale), y))
    return torch.cat(parts, axis)


def _global_average(
    node: ir.Node, x: list[Codes], grids: list[QuantParams], y: QuantParams
) -> Codes:
    """Compute ``round(sum(x - z_x) * float32(s_x / (s_y * n))) + z_y`` over the spatial axes.

    Source: ONNX Runtime kernel QLinearGlobalAveragePool; MlasQLinearGlobalAveragePoolNchw.
    """
    axes = tuple(range(2, x[0].ndim))
    size = np.float32(np.prod([x[0].shape[a] for a in axes]))
    total = (x[0] - float(grids[0].zero_point)).double().sum(axes, keepdim=True).float()
    return requantize(total * float(grids[0].scale / (y.scale * size)), y)


def float_mean(codes: Codes, grid: QuantParams) -> torch.Tensor:
    """Average over the spatial axes as floats: an exact integer sum times float32(s_x / n).

    The emitted file holds it as ones times codes (MatMulInteger), so this is no kernel of its own.
    """
    axes = tuple(range(2, codes.ndim))
    total = (codes - float(grid.zero_point)).double().sum(axes, keepdim=True).float()
    return total * float(mean_factor(grid, [codes.shape[a] for a in axes]))


def _average(node: ir.Node, x: list[Codes], grids: list[QuantParams], y: QuantParams) -> Codes:
    """Compute ``round(mean((x - z_x) * s_x) / s_y + z_y)`` over each window, in float32.

    Source: ONNX Runtime kernel QLinearAveragePool, which averages dequantized values.
    """
    function = select(node, 21)
    options = None if function is None else options_of(node, function)
    if function is None or options is None:
        raise AssertionError("AveragePool is not in the operator table")
    pooled = function(_values(x[0], grids[0]), **options)
    return _after_zero_point(pooled / float(y.scale), y)


KERNELS: dict[str, Callable[..., Codes]] = {
    "Add": _add,
    "Mul": _mul,
    "LeakyRelu": _by_table(_leaky),
    "Sigmoid": _by_table(_sigmoid),
    "Concat": _concat,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average,
}
