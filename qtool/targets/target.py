"""Integer operators, grids and file formats of a runtime; read from ``configs/targets/*.yaml``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qtool.quant.primitives import QuantSpec

FORMS = ("weighted", "elementwise", "same_grid", "concat")
DYNAMIC_OPS = ("MatMul", "Gemm", "LSTM")
OUTPUTS = ("quantized", "either")
FLOAT_PATTERNS = ("attention_mask", "box_decode", "spectrum")
# Forms of codes and scales that a runtime may compute at load, and the opsets that have them.
PACKING = {"int4": 21, "int2": 25, "bytes": 18, "base3": 18, "scales": 13}
FORMATS = ("qdq", "qoperator", "qonnx")
BIASES = ("int32", "float")
GRANULARITIES = ("channel", "tensor", "block")

# The newest opset that ONNX Runtime 1.31 loads; the converter goes as far.
NEWEST_OPSET = 26


@dataclass(frozen=True)
class OpRule:
    """Integer kernel of a target for one op type.

    Attributes:
        form: ``weighted`` (constant weights times an activation), ``elementwise`` (a grid for each
            float input and for the output), ``same_grid`` (codes move unchanged), ``concat``.
        inputs: positions of the activation inputs; empty: all.
        weight, bias: positions of the constant operands of a weighted op.
        output: ``quantized`` when the kernel writes codes only, ``either`` when floats too.
        absorbs: activation functions that the kernel computes by clipping to its output grid.
        unfused: activation functions that the runtime would fuse with a float output, into a float
            kernel; they are written as Max and Min.
        on_codes: emitted between Q and DQ, directly on the codes (same_grid only).
        on_codes_bits: the widest codes it moves like this; wider ones keep Q and DQ around it.
        fused_into: weighted ops whose kernels add the other operand before they round: the last
            one whose output only this op reads keeps it float (elementwise only).
        when: attribute name -> values the kernel requires; other nodes stay float.
    """

    form: str
    inputs: tuple[int, ...] = (0,)
    weight: int | None = None
    bias: int | None = None
    output: str = "quantized"
    absorbs: tuple[str, ...] = ()
    unfused: tuple[str, ...] = ()
    on_codes: bool = False
    on_codes_bits: int = 16
    fused_into: tuple[str, ...] = ()
    when: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightZeroPoint:
    """Zero point of stored convolution weights: the grid is the same, other kernels run.

    Attributes:
        value: the zero point; codes are shifted by as much.
        min_k: fewest products summed for one output, from which a layer gets it.
        min_macs: fewest multiply-accumulates of a layer, from which it gets it.
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
        sample_rewrites: names from SAMPLE_REWRITES, behind the others; left out where there are no
            samples, and where the outputs are codes.
        measured: the executions that support this file, in a sentence.
        requantizes: ops that the runtime converts to integers wherever they follow a
            DequantizeLinear, also those that the plan has as float.
        stores: op type -> input position -> axis of the scales, for weights of float ops that the
            file keeps as codes.
        dynamic: op type -> the fewest weights from which a kernel that computes the grid of its
            input at run time is faster than float; absent ops have none.
        widths: ``weights`` and ``activations`` -> the fewest and the most bits a recipe may
            request; absent: only the target's own.
        scale: form of the scales where the recipe names none, a ``scale_kind``.
        int16_pairs: pairs of products are added in 16 bits; scales of weights are widened so that
            no pair saturates.
        integer_only: there are no floats between the first codes and the last; the report compares
            the file with the integer-only reference.
        packing: what the runtime computes once at load, names from PACKING: codes from int4 or
            int2 initializers, from packed ``bytes`` or from five ternary codes a byte (``base3``),
            and ``scales`` of biases as products. A form is used where the file's opset has it;
            other codes are stored in int8 or uint8 containers.
        granularities: granularities of weights that a recipe may request; absent: the target's own.
        formats: the file formats it reads, the default first.
        opsets: the oldest and the newest opset it reads; absent: from its own to the newest.
        runtime: the program that executes the files; where that is not onnxruntime, kernels and
            latency in the report are not its own.
        isa: instruction sets (as the report names them) that the speed of its files depends on.
        bias: ``int32`` on the grid s_x * s_w, or ``float``.
        unsigned_where_positive: values that cannot be negative get unsigned codes.
        float_patterns: patterns whose ops stay float, names from FLOAT_PATTERNS: ops that add
            ``attention_mask``s to scores, layers of fixed numbers that decode boxes
            (``box_decode``), and layers in front of and behind a magnitude ``spectrum``.
        no_gain: ops whose integer kernels take as long as the float ones and their conversions:
            ``placement: auto`` leaves them float.
        island_gain_db: what the signal-to-noise ratio of the outputs must gain before
            ``placement: auto`` leaves further op kinds float; None: it never does.
        group_channels: channels that a group of an integer convolution shall have: groups with
            fewer are joined in the file, with zero weights; depthwise aside. 0: they never are.
        weight_zero_point: the zero point of stored weights and the layers that get it, or None.
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
    float_patterns: tuple[str, ...] = FLOAT_PATTERNS
    sample_rewrites: tuple[str, ...] = ()
    no_gain: tuple[str, ...] = ()
    island_gain_db: float | None = None
    group_channels: int = 0
    weight_zero_point: WeightZeroPoint | None = None
