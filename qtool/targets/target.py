"""What a runtime executes in integers: data, read from ``configs/targets/*.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qtool.quant.primitives import QuantSpec

FORMS = ("weighted", "elementwise", "same_grid", "concat")
DYNAMIC_OPS = ("MatMul", "Gemm", "LSTM")
OUTPUTS = ("quantized", "either")
# Forms of codes and scales that a runtime may compute at load, and the opsets that have them.
PACKING = {"int4": 21, "int2": 25, "bytes": 18, "base3": 18, "scales": 13}
FORMATS = ("qdq", "qoperator", "qonnx")
BIASES = ("int32", "float")
GRANULARITIES = ("channel", "tensor", "block")

# The newest opset that ONNX Runtime 1.31 loads; the converter goes as far.
NEWEST_OPSET = 26


@dataclass(frozen=True)
class OpRule:
    """How a target runs one op type in integers.

    Attributes:
        form: ``weighted`` (constant weights times an activation), ``elementwise`` (every float
            input and the output on grids of their own), ``same_grid`` (codes move unchanged),
            ``concat``.
        inputs: positions of the activation inputs; empty: all.
        weight, bias: positions of the constant operands of a weighted op.
        output: ``quantized`` when the kernel only writes codes, ``either`` when also floats.
        absorbs: activations that vanish into this op's output grid.
        on_codes: emitted between Q and DQ, directly on the codes (same_grid only).
        on_codes_bits: the widest codes it moves so; around wider ones Q and DQ stay.
        fused_into: weighted ops that add the other operand themselves, before they round: the
            last one whose output only this op reads keeps it float (elementwise only).
        when: attribute name -> values the kernel needs; anything else stays float.
    """

    form: str
    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    bias: int | None = None
    output: str = "quantized"
    absorbs: tuple[str, ...] = ()
    on_codes: bool = False
    on_codes_bits: int = 16
    fused_into: tuple[str, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightZeroPoint:
    """Convolutions whose weights are stored moved by a zero point: the same grid, other kernels.

    Attributes:
        value: the zero point; codes are moved by as much.
        min_k: only where at least so many products are summed for one output.
        min_macs: only where the layer has at least so many multiply-accumulates.
    """

    value: int
    min_k: int
    min_macs: int


@dataclass(frozen=True)
class Target:
    """One runtime on one kind of hardware.

    Attributes:
        activations, weights: the default grids; ``weights`` gets its axis from the op.
        ops: op type -> OpRule. An op that is absent stays float.
        rewrites: names from REWRITES, in order.
        measured: a sentence about what was executed to support this file.
        requantizes: ops that the runtime turns into integers by itself wherever it finds them
            behind a DequantizeLinear, also those that were meant to stay float.
        stores: op type -> input position -> axis of the scales, for weights of float ops that the
            file keeps as codes.
        dynamic: op type -> the fewest weights from which a kernel that finds the grid of its input
            while it runs is faster than float; absent ops have none.
        widths: ``weights`` and ``activations`` -> the fewest and the most bits a recipe may ask
            for; absent: only the target's own.
        scale: form of the scales where the recipe asks for none, a ``scale_kind``.
        int16_pairs: pairs of products are added in 16 bits: scales of weights are made so wide
            that none saturates.
        integer_only: there are no floats between the first codes and the last; the report says how
            the integer-only reference compares with the file.
        packing: what the runtime computes once at load, names from PACKING: codes from int4 or
            int2 initializers, from packed ``bytes`` or from five ternary codes a byte (``base3``),
            and ``scales`` of biases as products. A form is used where the file's opset has it;
            codes that no form serves lie in containers.
        granularities: how many scales for weights a recipe may ask for; absent: what the target's
            own allows.
        formats: the forms of file it reads, the default first.
        opsets: the oldest and the newest opset it reads; absent: from its own to the newest.
        runtime: what executes the files; where that is not onnxruntime, kernels and latency in the
            report are not its own.
        isa: instruction sets (as the report names them) without which its files lose their speed.
        bias: ``int32`` on the grid s_x * s_w, or ``float``.
        unsigned_where_positive: values that cannot be negative get unsigned codes.
        weight_zero_point: which weights are stored moved, or None.
    """

    name: str
    description: str
    opset: int
    activations: QuantSpec
    weights: QuantSpec
    ops: Mapping[str, OpRule]
    rewrites: tuple[str, ...]
    measured: str
    requantizes: tuple[str, ...] = ()
    stores: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    dynamic: Mapping[str, int] = field(default_factory=dict)
    widths: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    packing: tuple[str, ...] = ()
    scale: str = "float"
    int16_pairs: bool = False
    integer_only: bool = False
    granularities: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("qdq",)
    opsets: tuple[int, int] = (21, 21)
    runtime: str = "onnxruntime"
    isa: tuple[str, ...] = ()
    bias: str = "int32"
    unsigned_where_positive: bool = False
    weight_zero_point: WeightZeroPoint | None = None
