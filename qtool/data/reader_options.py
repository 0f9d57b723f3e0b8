"""The option models of the readers arrays, text, wav, python and synthetic."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qtool.user_code import is_function_name

Count = Annotated[int, Field(gt=0)]
Place = Annotated[int, Field(ge=0)]
Column = str | Place

ROLES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""The arrays that the text reader makes of a sample."""


class Part(BaseModel):
    """The base of the option models: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Arrays(Part):
    """A .npy or .npz file, or a folder of .npz files with one batch each; samples first."""

    path: str
    """The file or folder."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Model input to array name; absent: arrays called as the inputs."""
    label: str | None = None
    """The array of labels; absent: label, labels, y or target, if there is one."""


class Text(Part):
    """A table of sentences and the vocabulary that turns them into ids."""

    path: str
    """A .tsv, .csv or .jsonl file, UTF-8."""
    tokenizer: str
    """A tokenizer.json (needs qtool[text]), or a .txt vocabulary with one word per line."""
    text: Column | None = None
    """The column of the sentence: a name of the header, or a number from 0 without a header."""
    pair: Column | None = None
    """The column of a second sentence."""
    label: Column | None = None
    """The column of the class number or name."""
    length: Count | None = None
    """Tokens of every sample: longer ones are cut, shorter ones padded; absent: the model's."""
    lower: bool | None = None
    """Lower-case before looking up a .txt vocabulary; absent: if it has no capital letter."""
    inputs: dict[str, Literal["input_ids", "attention_mask", "token_type_ids", "position_ids"]] = (
        Field(default_factory=dict)
    )
    """Model input to the array that feeds it; absent: inputs called so."""


class LogMel(Part):
    """Log-mel spectrogram: |STFT|^power, mel filters, logarithm, normalisation."""

    n_fft: Annotated[int, Field(ge=2)] = 400
    """Samples of one Fourier transform."""
    window: Count | None = None
    """Samples of the periodic Hann window, centred in n_fft; absent: n_fft."""
    hop: Count = 160
    """Samples from one frame to the next."""
    mels: Count = 80
    """How many mel bands."""
    fmin: Annotated[float, Field(ge=0)] = 0.0
    """The lowest frequency, in Hz."""
    fmax: Annotated[float, Field(gt=0)] | None = None
    """The highest frequency, in Hz; absent: half the rate."""
    scale: Literal["htk", "slaney"] = "htk"
    """The mel scale."""
    norm: Literal["none", "slaney"] = "none"
    """slaney: every filter has the area 1 over Hz."""
    power: Annotated[float, Field(gt=0)] = 2.0
    """The exponent of the magnitude: 2 is power, 1 magnitude."""
    center: bool = True
    """Pad the signal by n_fft / 2 on both sides, mirrored, so that frame t is centred at t hop."""
    log: Literal["natural", "log10", "db"] = "natural"
    """ln, log10, or 10 log10."""
    offset: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the mel energies before the logarithm."""
    normalise: Literal["none", "sample"] | tuple[float, float] = "none"
    """sample: mean 0 and deviation 1 of each spectrogram; or [mean, std] to subtract, divide by."""
    layout: Literal["mel_time", "time_mel"] = "mel_time"
    """The order of the last two axes."""

    @field_validator("normalise", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _consistent(self) -> "LogMel":
        if self.window is not None and self.window > self.n_fft:
            raise ValueError(f"`window` is {self.window}; expected at most n_fft, {self.n_fft}")
        if self.fmax is not None and self.fmax <= self.fmin:
            raise ValueError(f"`fmax` is {self.fmax:g}; expected above fmin, {self.fmin:g}")
        if isinstance(self.normalise, tuple) and self.normalise[1] <= 0:
            raise ValueError(f"`normalise` divides by {self.normalise[1]:g}; expected above 0")
        return self


class Wav(Part):
    """A folder of .wav files, or of class folders."""

    path: str
    """The folder."""
    rate: Count | None = None
    """Samples a second that the model takes; files of another rate are resampled."""
    samples: Count | None = None
    """Samples of every recording at that rate; absent: the length of the model's input."""
    align: Literal["start", "center"] = "start"
    """Where a recording that is cut or padded with zeros stays."""
    hop: Count | None = None
    """Cut recordings into calls of ``samples``, each of which has so many new ones; before the
    start and behind the end are zeros. Absent: a recording is one sample."""
    log_mel: LogMel | None = None
    """Spectrogram settings; absent: the model gets samples between -1 and 1."""

    @model_validator(mode="after")
    def _consistent(self) -> "Wav":
        if self.hop is not None and self.align != "start":
            raise ValueError("`align` is for whole recordings, and `hop` cuts them: remove one")
        return self


class Python(Part):
    """A function that yields batches; needs --trust-code."""

    function: str
    """module:function; called with args, gives dicts of arrays, samples first."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the function."""

    @field_validator("function")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not is_function_name(name):
            raise ValueError(f'found "{name}", expected module:function, such as mine:batches')
        return name

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: dict[str, Any]) -> dict[str, Any]:
        """Refuse arguments that JSON changes: the verifying process gets them as JSON."""
        try:
            same = json.loads(json.dumps(args)) == args
        except (TypeError, ValueError):
            same = False
        if not same:
            raise ValueError(
                "expected words, numbers, true, false, lists, and mappings with words as keys; "
                "put anything else, such as a date, in quotes"
            )
        return args


class Synthetic(Part):
    """Made-up samples: smooth noise for images, normal noise for other inputs; no data is read."""

    ranges: Literal["batchnorm", "none"]
    """batchnorm: ranges come from the statistics of BatchNorm; none: nothing is calibrated."""
    mean: tuple[float, ...] | None = None
    """Mean of the inputs, one for each channel; absent: solved from the first BatchNorm, or 0."""
    std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of the inputs; absent: solved from the first BatchNorm, or 1."""

    @field_validator("mean", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(map(float, value)) if isinstance(value, list) else value
