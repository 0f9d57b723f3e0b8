"""The settings of benchmarks.peers: what each tool is asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """One way to use one tool.

    Attributes:
        width: bits of weights and activations, as in the table.
        title: in the table.
        samples: calibration samples, at most.
        cannot: why the tool has nothing at this width; empty: it is run.
    """

    width: str
    title: str
    samples: int = 512
    cannot: str = ""


# TOOL/SETTING; a setting that is run is a name in the tool's program in benchmarks.peer_programs.
PEERS = {
    "onnxruntime/default": Setting("W8A8", "quantize_static, all defaults"),
    "onnxruntime/documented": Setting("W8A8", "pre-processed, U8S8, one scale per channel"),
    "nncf/default": Setting("W8A8", "quantize, all defaults"),
    "nncf/accurate": Setting("W8A8", "accurate bias correction, preset mixed"),
    "onnxruntime/w4a8": Setting("W4A8", "INT4 weights rounded to nearest, ends INT8"),
    "nncf/w4a8": Setting(
        "W4A8",
        "-",
        cannot="its post-training quantization writes 8-bit weights only; 4 bits exist for the "
        "weights of MatMul alone, with float activations",
    ),
}
