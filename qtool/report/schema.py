"""The parts of the report: one model for each object in report.json."""

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

Status: TypeAlias = Literal["passed", "warning", "not proven", "not judged", "failed"]
Number: TypeAlias = float  # the built-in's name is a key of the schema, so fields shadow it

PARITY_MAX_LSB = 1
"""Rounding of two correct implementations differs by one step at most."""
PARITY_SHARE_OFF = 1e-5
"""Integer kernels compute the same codes but for ties of the last rounding."""
PARITY_SHARE_OFF_AFTER_FLOAT = 1e-3
"""Float operators sum in another order, so more values lie on the other side of a tie."""
PARITY_SHARE_OFF_WIDE = 1e-2
"""Values of more than 8 bits are computed in floats throughout, and their steps are so fine that
the order of a sum matters more often."""


class Part(BaseModel):
    """The base of all parts: frozen, no unknown keys, only finite numbers."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


class Verdict(Part):
    """The outcome of a run in one word, and the sentences that explain it."""

    status: Status
    reason: str


class ModelPart(Part):
    """The float model that was read."""

    path: str
    sha256: str
    parameters: int
    macs: int | None = None


class Codes(Part):
    """The grid (scale and zero point) of an input or output that is codes (integers).

    Codes are ``clip(round(value / scale) + zero_point, low, high)``, halves rounded to even.
    """

    dtype: str
    scale: float
    zero_point: int
    low: int
    high: int


class Provenance(Part):
    """The origin of a file, as its metadata says (`qtool.version`, `qtool.recipe_sha256` ...).

    `recipe_sha256` is the digest of the resolved recipe without folders and without what only
    measures; a file that the Python API wrote has none.
    """

    qtool: str
    recipe_sha256: str | None = None
    model_sha256: str | None = None


class OutputPart(Part):
    """The quantized file that was written (or, under `verify`, evaluated)."""

    path: str
    sha256: str
    opset: int
    format: str | None = None
    inputs: dict[str, Codes] | None = None
    """Inputs that are codes, with their grids; the file's metadata holds the same."""
    outputs: dict[str, Codes] | None = None
    provenance: Provenance | None = None


class DataPart(Part):
    """One set of samples: their number, and the digest of their content.

    `synthetic` is there where they were made up: the origin of the ranges.
    """

    count: int
    sha256: str
    synthetic: str | None = None


class TrainingEpoch(Part):
    """One epoch; 0 is the plan before training.

    `score` is of the held-out samples: top-1 in %, or without labels minus the loss against the
    float network. `oscillating` and `frozen` are as in `training`, at the end of the epoch.
    """

    epoch: int
    loss: float | None = None
    score: float
    oscillating: float | None = None
    frozen: float | None = None
    sparsity: float | None = None
    """Share of the weights that the recipe prunes that is 0 at the end of the epoch."""


class TrainingPart(DataPart):
    """The training samples, and the course of training.

    `float_score` is the float network's on the same held-out samples, where the score is top-1.

    `oscillating` and `frozen`, present with `qat.oscillation`, are shares from 0 to 1 of the
    weights of at most 4 bits after the last epoch: those whose code returned to its previous value
    in more than 0.5 % of the latest steps, and those that were fixed.
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
    doubts: list[str] | None = None
    """Sentences about labels or preprocessing that do not fit the model; the run is not judged."""


class ClassChange(Part):
    """One class whose answers changed.

    `lost` are right in the float model and wrong in the file, mostly `mistaken_for` one class.
    """

    name: str
    samples: int
    lost: int
    gained: int
    mistaken_for: str | None = None


class ChangedSample(Part):
    """One evaluation sample for which float model and file choose different classes.

    `margin` is the score of the class that the float model chooses, less that of the class that the
    file chooses, in the float model; `margin_after` is the same in the file. None: not finite.
    """

    name: str
    label: str | None = None
    float: str
    quantized: str
    margin: Number | None
    margin_after: Number | None
    thumbnail: str | None = None
    """A small image as a data URI, with `evaluate: {thumbnails: N}`."""


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
    quantized_ci95: tuple[Number, Number] | None = None
    """95 % interval of `quantized`, where it is a share of samples."""
    drop: Number | None = None
    drop_ci95: tuple[Number, Number] | None = None
    agreement: Number | None = None
    agreement_ci95: tuple[Number, Number] | None = None
    lower_is_better: bool | None = None
    """True for error rates; absent for the others."""
    chance: Number | None = None
    """Share of the most frequent label in %: the score of always naming one class."""
    classes: int | None = None
    """Classes of the model's first output."""
    label_classes: int | None = None
    """Classes that have a name in the data, such as class folders; absent for numbered labels."""
    class_changes: list[ClassChange] | None = None
    """The classes that lost most, at most ten; absent where no answer changed from or to right."""
    changed: int | None = None
    """Samples for which float model and file choose different classes; absent where none do."""
    changed_samples: list[ChangedSample] | None = None
    """At most 24 of these: those that became wrong first, then by the float model's margin."""


class Size(Part):
    """Bytes of both files; `weight_payload_bytes` counts the bits of weights.

    `weight_huffman_bytes` is what Huffman codes, one table a layer, would make of the weights'
    codes; the file does not use them.

    The last four add up to the file: codes and float numbers, scales, code books, and the graph.
    """

    float_bytes: int
    quantized_bytes: int
    compression: Number
    weight_bits_mean: Number | None = None
    weight_payload_bytes: int | None = None
    weight_huffman_bytes: int | None = None
    payload_bytes: int | None = None
    scale_bytes: int | None = None
    code_book_bytes: int | None = None
    graph_bytes: int | None = None


class IntegerOnly(Part):
    """The reference without floats against the file: layer by layer, and the classes it chooses."""

    max_lsb: int
    share_off: Number
    agreement: Number | None = None


class Finding(Part):
    """One cause of a loss, and the recipe lines that act on it.

    The gain is measured on held-out calibration samples; absent where nothing can be measured.
    """

    finding: str
    evidence: str
    recipe_lines: list[str] = Field(default_factory=list)
    predicted_gain_points: Number | None = None
    predicted_cost_bytes: int | None = None


class Gate(Part):
    """One limit, and the value that was compared with it."""

    name: str
    limit: Number
    value: Number
    passed: bool


class Parity(Part):
    """Differences between the integer-exact simulation and the file, layer by layer.

    `share_off` is codes that differ / codes compared, of all values of at most 8 bits. Where float
    operators compute some of them, the next two are the same share of either kind.
    """

    samples: int
    max_lsb: int
    """The largest difference, in steps."""
    share_off: Number
    integer_share_off: Number | None = None
    """The share among codes that integer kernels compute; absent where all are such."""
    after_float_share_off: Number | None = None
    """The share among codes that are rounded after a float operator."""
    wide_share_off: Number | None = None
    """The share among values of more than 8 bits, which the file computes in floats."""
    end_to_end_agreement: Number | None = None
    integer_only: IntegerOnly | None = None

    @property
    def gates(self) -> list[Gate]:
        """The gates that are always on: the file computes what was simulated.

        Integer kernels and float operators have limits of their own: in a pooled share, many
        correct codes of one kind hide errors of the other.
        """
        limits: list[tuple[str, float, float | None]] = [
            ("integer_share_off", PARITY_SHARE_OFF, self.integer_share_off),
            ("after_float_share_off", PARITY_SHARE_OFF_AFTER_FLOAT, self.after_float_share_off),
        ]
        if self.integer_share_off is None and self.after_float_share_off is None:
            limits = [("share_off", PARITY_SHARE_OFF, self.share_off)]
        limits += [
            ("max_lsb", PARITY_MAX_LSB, self.max_lsb),
            ("wide_share_off", PARITY_SHARE_OFF_WIDE, self.wide_share_off),
        ]
        return [
            Gate(name=f"parity_{name}", limit=limit, value=value, passed=value <= limit)
            for name, limit, value in limits
            if value is not None
        ]

    @property
    def passed(self) -> bool:
        """True where the file computes what was simulated: all parity gates pass."""
        return all(gate.passed for gate in self.gates)


class Kernels(Part):
    """The operators that the runtime executes: counts per operator, sorted by name.

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


class Stage(Part):
    """One stage of the pipeline: its time, memory and notes."""

    name: str
    seconds: Number
    peak_rss_mb: Number | int | None = None
    cached: bool = False
    notes: list[str] = Field(default_factory=list)


class PtqStep(Part):
    """One post-training step: the distance to the float output before and after it.

    The distance is measured on calibration samples that the step did not see; `kept` is false where
    it did not fall, and the plan before the step is used. A row with `block` is one layer or block
    of the step: its distance is the relative error of its own output.
    """

    step: str
    block: str | None = None
    before: Number
    after: Number
    kept: bool
    seconds: Number
    metrics: dict[str, Number] | None = None
    """Numbers that the step reports, such as the layers that it changed."""
