"""The parts of the report: one model for each object in report.json."""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

Number: TypeAlias = float  # the built-in's name is a key of the schema, so fields shadow it


class Part(BaseModel):
    """What all parts share: frozen, no unknown keys, only finite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


class ModelPart(Part):
    """The float model that was read."""

    path: str
    sha256: str
    parameters: int
    macs: int | None = None


class Codes(Part):
    """The grid of an input or output that is codes.

    Codes are ``clip(round(value / scale) + zero_point, low, high)``, halves rounded to even.
    """

    dtype: str
    scale: float
    zero_point: int
    low: int
    high: int


class OutputPart(Part):
    """The quantized file that was written (or, under `verify`, judged)."""

    path: str
    sha256: str
    opset: int
    format: str | None = None
    inputs: dict[str, Codes] | None = None
    """Inputs that are codes, and on which grids; the file's metadata says the same."""
    outputs: dict[str, Codes] | None = None


class DataPart(Part):
    """One set of samples: how many were read, and the digest of what was read."""

    count: int
    sha256: str


class TrainingEpoch(Part):
    """One epoch; 0 is the plan before training.

    `score` is judged on the held-out samples: top-1 in %, or without labels minus the loss against
    the float network. `oscillating` and `frozen` are as in `training`, when the epoch ended.
    """

    epoch: int
    loss: float | None = None
    score: float
    oscillating: float | None = None
    frozen: float | None = None


class TrainingPart(DataPart):
    """What training learned from, and how it went.

    `float_score` is the float network's on the same held-out samples, where the score is top-1.

    Where `qat.oscillation` asks for them, shares of the weights of at most 4 bits after the last
    epoch, 0 to 1: those whose code jumped back in more than 0.5 % of the latest steps, and those
    that were fixed.
    """

    validation: int
    quantizer: str
    best: int
    float_score: float | None = None
    epochs: list[TrainingEpoch]
    oscillating: float | None = None
    frozen: float | None = None


class Data(Part):
    """The samples of each use; a use that did not happen is absent."""

    calibration: DataPart | None = None
    training: TrainingPart | None = None
    evaluation: DataPart | None = None


class Accuracy(Part):
    """Metric of the float model, the simulation and the file; without `evaluate`, agreement alone.

    `drop` is float - quantized, in the metric's own unit (percentage points for "%").
    """

    metric: str | None = None
    unit: str | None = None
    samples: int
    float: Number | None = None
    simulated: Number | None = None
    simulated_samples: int | None = None
    """Samples that `simulated` was measured on, evenly spread over the evaluation samples."""
    quantized: Number | None = None
    drop: Number | None = None
    drop_ci95: tuple[Number, Number] | None = None
    agreement: Number | None = None


class Size(Part):
    """Bytes of both files; `weight_payload_bytes` counts the bits of weights.

    The last four add up to the file: codes and float numbers, scales, code books, and the graph.
    """

    float_bytes: int
    quantized_bytes: int
    compression: Number
    weight_bits_mean: Number | None = None
    weight_payload_bytes: int | None = None
    payload_bytes: int | None = None
    scale_bytes: int | None = None
    code_book_bytes: int | None = None
    graph_bytes: int | None = None


class Latency(Part):
    """Medians of paired runs; `speedup` is their ratio."""

    threads: int
    batch: int
    float_ms: Number
    quantized_ms: Number
    speedup: Number
    runs: int


class IntegerOnly(Part):
    """The reference without floats against the file: layer by layer, and the classes it chooses."""

    max_lsb: int
    share_off: Number
    agreement: Number | None = None


class Parity(Part):
    """Integer-exact simulation against the file, layer by layer."""

    samples: int
    max_lsb: int
    share_off: Number
    wide_share_off: Number | None = None
    """The share among values of more than 8 bits, which the file computes in floats."""
    end_to_end_agreement: Number | None = None
    integer_only: IntegerOnly | None = None


class Kernels(Part):
    """What the runtime executes: counts per operator, sorted by name.

    `saturation_risk` names the layers in which pairs of products can leave int16.
    """

    integer: dict[str, int] = Field(default_factory=dict)
    float: dict[str, int] = Field(default_factory=dict)
    stray_quantize: list[str] = Field(default_factory=list)
    saturation_risk: bool | list[str] = False

    @field_validator("integer", "float")
    @classmethod
    def _sorted(cls, counts: dict[str, int]) -> dict[str, int]:
        return dict(sorted(counts.items()))


class Layer(Part):
    """One weighted layer; `sqnr_db` is absent where the layer is float or loses nothing.

    `bytes` are what its constants take in the file: codes and float numbers (`payload_bytes`),
    scales, and code books.
    """

    name: str
    op: str
    weight_bits: int | Literal["float"] | None = None
    activation_bits: int | Literal["float", "dynamic"] | None = None
    granularity: str | None = None
    sqnr_db: Number | None = None
    bytes: int | None = None
    payload_bytes: int | None = None
    scale_bytes: int | None = None
    code_book_bytes: int | None = None


class Stage(Part):
    """One stage of the pipeline: time, memory, and what it has to say."""

    name: str
    seconds: Number
    peak_rss_mb: Number | int | None = None
    cached: bool = False
    notes: list[str] = Field(default_factory=list)


class Gate(Part):
    """One limit of the recipe and the value it was held against."""

    name: str
    limit: Number
    value: Number
    passed: bool


class PtqStep(Part):
    """One post-training step: the distance to the float output before and after it.

    The distance is measured on calibration samples that the step did not see; `kept` is false where
    it did not fall, and the plan before the step is used.
    """

    step: str
    block: str | None = None
    before: Number
    after: Number
    kept: bool
    seconds: Number
