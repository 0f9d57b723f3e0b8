"""The settings of benchmarks.peers: what each tool is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SAMPLES = 512
# SeqMSE and AdaRound keep the inputs of a layer for all samples, and run it many times.
FEW = {
    **dict.fromkeys(("resnet20", "resnet56", "resnet20_badly_scaled"), 128),
    **dict.fromkeys(("mobilenet_v2_float", "efficientnet_lite0", "squeezenet1_1"), 64),
    **dict.fromkeys(("minilm_l6_sst2", "ppocr_v4_rec"), 64),
}


@dataclass(frozen=True)
class Setting:
    """One way to use one tool.

    Attributes:
        width: bits of weights and activations, as in the table.
        title: in the table.
        cannot: why the tool has nothing at this width; empty: it is run.
        fewer: calibration samples of the networks that get less than SAMPLES.
    """

    width: str
    title: str
    cannot: str = ""
    fewer: Mapping[str, int] = field(default_factory=dict)


# TOOL/SETTING; a setting that is run is a name in the tool's program in benchmarks.peer_programs.
PEERS = {
    "onnxruntime/default": Setting("W8A8", "quantize_static, all defaults"),
    "onnxruntime/documented": Setting("W8A8", "pre-processed, U8S8, one scale per channel"),
    "nncf/default": Setting("W8A8", "quantize, all defaults"),
    "nncf/accurate": Setting("W8A8", "accurate bias correction, preset mixed"),
    "aimet/default": Setting("W8A8", "batch norms folded, minimum and maximum"),
    "aimet/equalized": Setting("W8A8", "cross-layer equalization, ranges by SQNR"),
    "quark/default": Setting("W8A8", "preset INT8_CNN_DEFAULT or INT8_TRANSFORMER_DEFAULT"),
    "quark/equalized": Setting(
        "W8A8", "cross-layer equalization, percentile, one scale per channel, bias correction"
    ),
    "quark/accurate": Setting("W8A8", "preset INT8_..._ACCURATE: percentile, AdaRound"),
    "onnxsim/default": Setting("W8A8", "quantize_full_qdq, all defaults"),
    "onnxsim/equalized": Setting("W8A8", "cross-layer equalization, bias correction"),
    "onnxsim/adaround": Setting("W8A8", "cross-layer equalization, AdaRound"),
    "onnxruntime/w4a8": Setting("W4A8", "INT4 weights rounded to nearest, ends INT8"),
    "nncf/w4a8": Setting(
        "W4A8",
        "-",
        cannot="its post-training quantization writes 8-bit weights only; 4 bits exist for the "
        "weights of MatMul alone, with float activations",
    ),
    "aimet/seqmse": Setting("W4A8", "cross-layer equalization, SeqMSE, ends INT8", fewer=FEW),
    "aimet/adaround": Setting("W4A8", "cross-layer equalization, AdaRound, ends INT8", fewer=FEW),
    "quark/w4a8": Setting(
        "W4A8",
        "-",
        cannot="given INT4 as the type of the weights it stops with 'Only INT8, UINT8, INT16, and "
        "UINT16 are supported'; its GPTQ of 4 bits writes MatMulNBits with float activations",
    ),
    "onnxsim/gptq4": Setting(
        "W4A8",
        "cross-layer equalization, GPTQ to 4-bit codes stored as INT8, ends INT8; it leaves "
        "depthwise layers at 8 bits",
    ),
}
