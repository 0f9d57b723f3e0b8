"""Write layers as matrix products: input rows by im2col, weights as [groups, outputs, inputs]."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from qtool.graph.queries import attribute, weight_axis
from qtool.runtime.ops.nn import window_pads

# An input is copied to channels last where more than one in so many of its elements is read.
SPARSE = 8

MATRIX_OPS = ("Conv", "Gemm", "MatMul")
"""Ops with weights that are a matrix product over rows of the input."""


@dataclass(frozen=True)
class MatrixLayer:
    """A Conv, Gemm or 2-D MatMul as ``y = x @ w.T`` over rows, one product for each group.

    Attributes:
        node: of the graph.
        shape: of its weights.
        groups: 1 except for grouped and depthwise convolutions.
    """

    node: ir.Node
    shape: tuple[int, ...]
    groups: int

    @property
    def unknowns(self) -> int:
        """Weights of one output channel."""
        return int(np.prod(self.shape)) // self.shape[weight_axis(self.node)]

    def matrices(self, array: np.ndarray) -> np.ndarray:
        """Return an array of the weights' shape as matrices, [groups, outputs, unknowns]."""
        rows = np.moveaxis(array, weight_axis(self.node), 0)
        return rows.reshape(self.groups, -1, self.unknowns)

    def from_matrices(self, matrices: np.ndarray) -> np.ndarray:
        """Return matrices in the shape of the weights; the inverse of :meth:`matrices`."""
        axis = weight_axis(self.node)
        rest = [size for a, size in enumerate(self.shape) if a != axis]
        return np.moveaxis(matrices.reshape(self.shape[axis], *rest), 0, axis)

    def positions(self, x: torch.Tensor) -> tuple[int, ...]:
        """Return the sizes of the axes that rows are counted along: samples, then places.

        Args:
            x: input of the layer.
        """
        if self.node.op_type != "Conv":
            return (x.numel() // max(self.unknowns, 1),)
        begin, end = self._pads(x)
        strides, dilations = self._steps()
        places = [
            (size + b + e - (k - 1) * d - 1) // s + 1
            for size, b, e, k, s, d in zip(
                x.shape[2:], begin, end, self.shape[2:], strides, dilations, strict=True
            )
        ]
        return (x.shape[0], *places)

    def rows(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return input rows, [groups, rows, unknowns]; padding is 0.

        Args:
            x: input of the layer.
            chosen: flat indices of rows among :meth:`positions`, int64.
        """
        if self.node.op_type != "Conv":
            turned = self.node.op_type == "Gemm" and attribute(self.node, "transA", 0)
            return (x.T if turned else x).reshape(1, -1, self.unknowns)[:, chosen]
        strides, dilations = self._steps()
        begin, _ = self._pads(x)
        *corner, sample = _unravel(chosen, self.positions(x)[1:])
        last = x.movedim(1, -1)  # a view: samples, places, channels
        kernel = self.shape[2:]
        if len(chosen) * math.prod(kernel) * SPARSE > last[..., 0].numel():
            last = last.contiguous()
        offsets = torch.tensor(
            list(itertools.product(*(range(k) for k in kernel))), device=chosen.device
        )
        at = [
            c[:, None] * s + (offsets[:, axis] * d - b)
            for axis, (c, s, d, b) in enumerate(zip(corner, strides, dilations, begin, strict=True))
        ]
        taken = _at(last, sample, at)  # rows, offsets, channels
        return taken.movedim(1, 2).reshape(len(chosen), self.groups, self.unknowns).movedim(1, 0)

    def _steps(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ones = (1,) * (len(self.shape) - 2)
        strides, dilations = (attribute(self.node, n) for n in ("strides", "dilations"))
        return strides or ones, dilations or ones

    def _pads(self, x: torch.Tensor) -> tuple[list[int], list[int]]:
        pads, auto = attribute(self.node, "pads"), attribute(self.node, "auto_pad", "NOTSET")
        return window_pads(x.shape[2:], self.shape[2:], *self._steps(), pads, auto)


def _unravel(flat: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Return the index along each of the last axes, then the rest (the sample) of flat indices."""
    indices: list[torch.Tensor] = []
    for size in reversed(sizes):
        indices.insert(0, flat % size)
        flat = flat // size
    return [*indices, flat]


def _at(last: torch.Tensor, sample: torch.Tensor, at: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the channels at places [rows, offsets], [rows, offsets, C]; 0 in the padding."""
    nearest = [a.clamp(0, size - 1) for a, size in zip(at, last.shape[1:-1], strict=True)]
    values = last[(sample[:, None], *nearest)]
    inside = torch.ones_like(nearest[0], dtype=torch.bool)
    for a, b in zip(at, nearest, strict=True):
        inside &= a == b
    return values if bool(inside.all()) else values.mul_(inside[..., None])


def matrix_layer(node: ir.Node, weight: np.ndarray) -> MatrixLayer | None:
    """Return a node with weights as a matrix product, or None where it is none.

    Args:
        node: of the graph.
        weight: its second input.
    """
    if node.op_type not in MATRIX_OPS or not weight.size:
        return None
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    if node.op_type != "Conv" and weight.ndim != 2:
        return None
    return MatrixLayer(node, weight.shape, groups)
