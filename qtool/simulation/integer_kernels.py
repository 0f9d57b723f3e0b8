"""Integer kernels of single sites: built from grids in floats, then run on integers only.

A builder takes a :class:`Work` and returns a kernel ``inputs -> output`` of int32 tensors: codes to
codes, or to sums of products where the site writes floats.

Source: Jacob et al. 2018, sec. 2.2 to 2.4 and appendix A, arXiv:1712.05877.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from qtool.errors import UnsupportedError
from qtool.graph.queries import attribute, weight_axis
from qtool.quant.primitives import QuantParams, align
from qtool.quant.scale_formats import Multiplier, as_integers, normalized
from qtool.runtime.ops.nn import Windows, window_sums
from qtool.runtime.ops.table import options_of, select
from qtool.simulation.fixed_point import WIDEST, Rescale, common, divide, rescale, shift_right
from qtool.simulation.ort_kernels import KERNELS as ORT_KERNELS

T = torch.Tensor
Kernel = Callable[[Sequence[T]], T]


@dataclass(frozen=True, eq=False)
class Work:
    """Everything that a builder needs of one site.

    Attributes:
        node: of the site.
        opset: of its model.
        grids: of the activation inputs, in the node's order.
        y: grid of the output, or None for sums of products.
        limits: smallest and largest code of the output, cut by a folded Relu or Clip.
        rounding: a name from ROUNDINGS.
        weight: codes of a weighted site, else None.
        bias: int32 codes on s_x * s_w, or None.
        weight_grid: of the weight, or None.
    """

    node: ir.Node
    opset: int
    grids: tuple[QuantParams, ...]
    y: QuantParams | None
    limits: tuple[int, int]
    rounding: str
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    weight_grid: QuantParams | None = None

    @property
    def out(self) -> QuantParams:
        """The output's grid, which must exist."""
        if self.y is None:
            raise AssertionError(f"{self.node.name} has no output grid")
        return self.y

    def saturate(self, x: T) -> T:
        """Clamp to the limits of the output's codes; int32."""
        return x.clamp(*self.limits).to(torch.int32)

    @property
    def zero_point_first(self) -> bool:
        """True where the zero point is added before rounding: ties become even codes, as in ORT."""
        return self.rounding == "half_even"


def zero_of(grid: QuantParams) -> int:
    """Return the zero point of a per-tensor grid."""
    return int(grid.zero_point)


def call(node: ir.Node, opset: int, inputs: Sequence[T | None]) -> list[T]:
    """Compute a node by the operator table, whose functions accept integers too.

    Raises:
        UnsupportedError: the table has no function for the node.
    """
    function = select(node, opset)
    options = None if function is None else options_of(node, function)
    if function is None or options is None:
        raise UnsupportedError(
            f'node "{node.name}": found {node.op_type}, which the integer-only reference does not '
            "compute; keep it in float"
        )
    outputs = function(*inputs, **options)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


def _ratio(a: QuantParams, y: QuantParams) -> np.float64:
    """Return s_a / s_y as the runtime computes it: rounded to float32, exact in float64."""
    return np.float64(np.float32(a.scale / y.scale))


def weighted(work: Work) -> Kernel:
    """Build a Conv, Gemm or MatMul: int32 sums, bias added, one multiplier per channel.

    Sums that might pass int32 (16-bit activations) are int64, with a shorter multiplier.
    """
    node, (x,), w = work.node, work.grids, work.weight_grid
    if work.weight is None or w is None:
        raise AssertionError(f"{node.name} has no weights")
    zero = zero_of(x)
    # Largest |x - z_x|: bounds every partial sum of a channel by its sum of |w|.
    largest = max(zero - x.spec.qmin, x.spec.qmax - zero)
    shifted = work.weight.astype(np.int64) - align(w, work.weight)[1].astype(np.int64)
    rows = np.moveaxis(np.abs(shifted), weight_axis(node), 0)
    sums = rows.reshape(len(rows), -1).sum(1) * largest
    bound = int((sums + (0 if work.bias is None else np.abs(work.bias.astype(np.int64)))).max())
    kind = torch.int32 if bound < 2**31 else torch.int64
    weight = torch.from_numpy(shifted).to(kind)
    product = _product(node, weight, work.opset)
    # Channels lie along axis 1 of a convolution's output and along the last of a product's.
    along = [1 if node.op_type.startswith("Conv") else -1]
    bias = None if work.bias is None else torch.from_numpy(work.bias.astype(np.int64)).to(kind)
    scale = None if work.y is None else _multiplier(x, w, work.y, bound)

    def shaped(part: T, like: T) -> T:
        shape = [1] * like.ndim
        shape[along[0]] = -1
        return part.reshape(shape) if part.ndim else part

    def run(inputs: Sequence[T]) -> T:
        total = product(inputs[0].to(kind) - zero)
        if bias is not None:
            total = total + shaped(bias, total)
        if scale is None:
            return total
        here = Rescale(scale.form, shaped(scale.factor, total), shaped(scale.shift, total))
        return work.saturate(here(total.to(torch.int64), work.rounding) + zero_of(work.out))

    return run


def _product(node: ir.Node, weight: T, opset: int) -> Callable[[T], T]:
    """Return the node's product with a weight, as a function of the other operand."""
    function = select(node, opset)
    options = None if function is None else options_of(node, function)
    if function is None or options is None:
        raise AssertionError(f"{node.op_type} is not in the operator table")
    # Torch has no dilations on integers: zeros between the weights stand for them.
    steps = options.pop("dilations", None) or [1] * max(weight.ndim - 2, 0)
    for axis, step in enumerate(steps, 2):
        if step > 1 and node.op_type == "Conv":
            shape = list(weight.shape)
            shape[axis] = (shape[axis] - 1) * step + 1
            spread = weight.new_zeros(shape)
            spread.index_copy_(axis, torch.arange(0, shape[axis], step), weight)
            weight = spread
    run, chosen = function, options
    return lambda x: run(x, weight, **chosen)


def _multiplier(x: QuantParams, w: QuantParams, y: QuantParams, bound: int) -> Rescale:
    kind = w.spec.scale_kind
    if kind == "float":
        # The runtime's float32 multiplier: 24 bits, which 31 hold exactly.
        alpha = np.asarray((x.scale * w.scale) / y.scale, np.float64)
        bits = min(31, WIDEST - bound.bit_length())
        return rescale(Multiplier("product", *normalized(alpha, bits)))
    return rescale(as_integers(x.scale.astype(np.float64) * w.scale / y.scale, kind))


def add(work: Work) -> Kernel:
    """Build an Add: both operands on one common shift, added, rounded once.

    With a multiplier of w bits the sum is off by less than 2^(10 - w) steps before it is rounded:
    codes differ from the real sum's by at most one, where that lies this close to a half.
    """
    alphas = np.array([_ratio(grid, work.out) for grid in work.grids])
    terms = rescale(as_integers(alphas, work.out.spec.scale_kind, together=True))
    zeros, zero = [zero_of(grid) for grid in work.grids], zero_of(work.out)

    def run(inputs: Sequence[T]) -> T:
        parts = [codes.to(torch.int64) - z for codes, z in zip(inputs, zeros, strict=True)]
        total, shift = common(parts, terms)
        return _shifted(work, total, shift, zero)

    return run


def _shifted(work: Work, total: T, shift: T, zero: int) -> T:
    """Shift right with one rounding and add the zero point, in the order of the rounding."""
    if work.zero_point_first:
        return work.saturate(shift_right(total + (zero << shift), shift, work.rounding))
    return work.saturate(shift_right(total, shift, work.rounding) + zero)


def mul(work: Work) -> Kernel:
    """Build a Mul: the product of both operands, rescaled once."""
    a, b = work.grids
    alpha = np.float64(np.float32((a.scale * b.scale) / work.out.scale))
    scale = rescale(as_integers(alpha, work.out.spec.scale_kind))
    zeros, zero = (zero_of(a), zero_of(b)), zero_of(work.out)

    def run(inputs: Sequence[T]) -> T:
        first, second = (c.to(torch.int64) - z for c, z in zip(inputs, zeros, strict=True))
        left = (-scale.shift).clamp(min=0)
        total = scale.product(first * second) << left
        return _shifted(work, total, scale.shift.clamp(min=0), zero)

    return run


def table(work: Work) -> Kernel:
    """Build a LeakyRelu or Sigmoid: a table of all codes, computed in floats when built."""
    (x,) = work.grids
    codes = torch.arange(x.spec.qmin, x.spec.qmax + 1)
    entries = ORT_KERNELS[work.node.op_type](work.node, [codes.float()], [x], work.out)
    codes_out = work.saturate(entries.to(torch.int64))

    def run(inputs: Sequence[T]) -> T:
        return codes_out[inputs[0].to(torch.int64) - x.spec.qmin]

    return run


def concat(work: Work) -> Kernel:
    """Build a Concat: requantize each operand to the output's grid; copy those on that grid."""
    y = work.out
    scales = [
        None
        if grid.scale == y.scale and zero_of(grid) == zero_of(y)
        else rescale(as_integers(_ratio(grid, y), y.spec.scale_kind))
        for grid in work.grids
    ]
    axis = int(attribute(work.node, "axis", 0))

    def run(inputs: Sequence[T]) -> T:
        parts = []
        for codes, grid, scale in zip(inputs, work.grids, scales, strict=True):
            if scale is not None:
                rescaled = scale(codes.to(torch.int64) - zero_of(grid), work.rounding)
                codes = work.saturate(rescaled + zero_of(y))
            parts.append(codes.to(torch.int32))
        return torch.cat(parts, axis)

    return run


def global_average(work: Work) -> Kernel:
    """Build a GlobalAveragePool: sums, rescaled and divided by the area with one rounding."""
    (x,) = work.grids
    if work.y is None:

        def total(inputs: Sequence[T]) -> T:
            codes = inputs[0].to(torch.int64) - zero_of(x)
            return codes.sum(tuple(range(2, codes.ndim)), keepdim=True).to(torch.int32)

        return total
    mean = _mean(work)

    def run(inputs: Sequence[T]) -> T:
        codes = inputs[0].to(torch.int64) - zero_of(x)
        axes = tuple(range(2, codes.ndim))
        count = torch.tensor(int(np.prod(codes.shape[2:])))
        return mean(codes.sum(axes, keepdim=True), count, False)

    return run


def average(work: Work) -> Kernel:
    """Build an AveragePool: sums, rescaled and divided by each window's count with one rounding."""
    node, (x,) = work.node, work.grids
    attributes = {
        "strides": attribute(node, "strides"),
        "dilations": attribute(node, "dilations"),
        "pads": attribute(node, "pads"),
        "auto_pad": attribute(node, "auto_pad", "NOTSET"),
        "ceil_mode": attribute(node, "ceil_mode", 0),
    }
    kernel, include = attribute(node, "kernel_shape"), attribute(node, "count_include_pad", 0)
    mean = _mean(work)

    def run(inputs: Sequence[T]) -> T:
        codes = inputs[0].to(torch.int32) - zero_of(x)
        sums, counts = window_sums(codes, Windows(codes, kernel, **attributes), include)
        return mean(sums.to(torch.int64), counts.to(torch.int64), True)

    return run


def _mean(work: Work) -> Callable[[T, T, bool], T]:
    """Build ``sums / counts * s_x / s_y + z_y`` as one quotient of integers.

    Hardware divides by a constant with one more multiplier; the quotient here is the exact one.
    """
    (x,), y = work.grids, work.out
    exact = y.spec.scale_kind in ("power_of_two", "double_shift")
    # A factor of 24 bits leaves 62 - 24 = 38 bits for a sum: 2^30 codes of 8 bits.
    alpha = np.float64(x.scale) / np.float64(y.scale)
    multiplier = as_integers(alpha, y.spec.scale_kind) if exact else _short(alpha, y)
    scale = rescale(multiplier)
    zero = zero_of(y)

    def mean(sums: T, counts: T, as_average_pool: bool) -> T:
        total = scale.product(sums) << (-scale.shift).clamp(min=0)
        by = counts << scale.shift.clamp(min=0)
        # QLinearAveragePool adds the zero point before rounding, QLinearGlobalAveragePool after.
        if as_average_pool and work.zero_point_first:
            return work.saturate(divide(total + zero * by, by, work.rounding))
        return work.saturate(divide(total, by, work.rounding) + zero)

    return mean


def _short(alpha: np.float64, y: QuantParams) -> Multiplier:
    kind = y.spec.scale_kind
    if kind != "float":
        return as_integers(alpha, kind)
    return Multiplier("product", *normalized(alpha, 24))


BUILDERS: dict[str, Callable[[Work], Kernel]] = {
    "Conv": weighted,
    "Gemm": weighted,
    "MatMul": weighted,
    "Add": add,
    "Mul": mul,
    "LeakyRelu": table,
    "Sigmoid": table,
    "Concat": concat,
    "GlobalAveragePool": global_average,
    "AveragePool": average,
}
