"""Tasks of the verifying child process and their results, as typed messages.

Imports neither torch nor onnx_ir, so that the child starts fast.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from qtool.data import DataSection, Dataset, InputSpec

R = TypeVar("R")


@dataclass(frozen=True)
class Samples:
    """Samples that the child reads by itself.

    Attributes:
        section: the data section of the recipe, as JSON.
        inputs: the values of each input's ``InputSpec``.
        indices: positions among the samples of the section.
        trust_code: allow a reader that is code to run.
        states: folder of the states that the samples read, where they are calls of streams.
    """

    section: str
    inputs: tuple[tuple[Any, ...], ...]
    indices: tuple[int, ...]
    trust_code: bool = False
    states: str | None = None

    @classmethod
    def of(
        cls,
        section: "DataSection",
        inputs: Mapping[str, "InputSpec"],
        indices: tuple[int, ...],
        trust_code: bool,
        states: Path | None = None,
    ) -> "Samples":
        """Describe samples of a data section; arguments as the attributes."""
        from qtool.data import DataSection

        text = section.model_dump_json(exclude_none=True, include=set(DataSection.model_fields))
        specs = tuple(astuple(spec) for spec in inputs.values())
        return cls(text, specs, indices, trust_code, None if states is None else str(states))

    @property
    def specs(self) -> "dict[str, InputSpec]":
        """The model's inputs by name."""
        from qtool.data import InputSpec

        return {values[0]: InputSpec(*values) for values in self.inputs}

    def open(self) -> "Dataset":
        """Open the samples, in the order of ``indices``."""
        from qtool.data import DataSection, open_dataset
        from qtool.data.streams.recorded_states import with_recorded_states

        section = DataSection.model_validate_json(self.section)
        dataset = open_dataset(section, self.specs, trust_code=self.trust_code).take(self.indices)
        if self.states is None:
            return dataset
        return with_recorded_states(dataset, self.specs, Path(self.states))

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model fixes, or None."""
        from qtool.data.inputs import fixed_batch

        return fixed_batch(self.specs.values())


@dataclass(frozen=True)
class OptimizeResult:
    """Seconds that ONNX Runtime takes to load the file."""

    load_seconds: float


@dataclass(frozen=True)
class CaptureResult:
    """Number of ``<k>.npz`` files that were written."""

    files: int


@dataclass(frozen=True)
class EvaluateResult:
    """Number of samples whose outputs were written."""

    samples: int


@dataclass(frozen=True)
class LatencyResult:
    """Median milliseconds of both files and their ratio; field names are keys of report.json."""

    float_ms: float
    quantized_ms: float
    speedup: float
    runs: int
    batch: int
    threads: int


@dataclass(frozen=True)
class ProfileResult:
    """Time of each kernel in one run of a file.

    Attributes:
        milliseconds: node of the executed graph -> median over the runs.
        operators: node of the executed graph -> kernel, such as QLinearConv.
    """

    milliseconds: dict[str, float]
    operators: dict[str, str]


@dataclass(frozen=True)
class ComparedOutputs:
    """Powers (signal, noise) of each slice; None where the outputs cannot be compared.

    ``samples`` were compared.
    """

    powers: tuple[tuple[float, float] | None, ...]
    samples: int


class Task(Generic[R]):
    """A task for the child; ``result`` is the class of its result."""

    result: ClassVar[type[Any]]

    def with_less_memory(self) -> "Task[R]":
        """Return the task in smaller batches, where it has batches to choose."""
        return self


@dataclass(frozen=True)
class Optimize(Task[OptimizeResult]):
    """Write the graph that ONNX Runtime executes, and time how long the file loads.

    Attributes:
        model: path of the file.
        optimized: path to write to.
        threads: of ONNX Runtime.
        big: the weights are written to a file of their own.
    """

    model: str
    optimized: str
    threads: int = 1
    big: bool = False
    result = OptimizeResult


@dataclass(frozen=True)
class Capture(Task[CaptureResult]):
    """Save named outputs batch by batch, as ``0.npz`` ...: ``i:<input>``, ``c:<codes>``, ``o<k>``.

    Attributes:
        model: path of the file.
        outputs: names to save.
        folder: to write to; exists.
        samples: inputs to run.
        rows: samples of a batch.
        threads: of ONNX Runtime.
    """

    model: str
    outputs: tuple[str, ...]
    folder: str
    samples: Samples
    rows: int = 1
    threads: int = 1
    result = CaptureResult


@dataclass(frozen=True)
class Evaluate(Task[EvaluateResult]):
    """Save an output on all samples as .npy.

    Attributes:
        name: shown in the progress.
        model: path of the file.
        path: of the .npy file to write.
        samples: inputs to run.
        rows: samples of a batch; None: as many as suit the kernels.
        threads: of ONNX Runtime.
        halved: batches of half that many samples.
        output: position of the output among those of the file.
    """

    name: str
    model: str
    path: str
    samples: Samples
    rows: int | None = None
    threads: int = 1
    halved: bool = False
    output: int = 0
    result = EvaluateResult

    def with_less_memory(self) -> "Evaluate":
        """Return the task with batches of half the samples."""
        return replace(self, halved=True)


@dataclass(frozen=True)
class TimePair(Task[LatencyResult]):
    """Time two files in turn, A B B A, on one batch.

    Attributes:
        float_model: path of the float file.
        quantized_model: path of the quantized file.
        feeds: path of an .npz file with one array for each input.
        batch: samples in it.
        threads: of ONNX Runtime.
        big: load one session at a time, since both would not fit into memory.
    """

    float_model: str
    quantized_model: str
    feeds: str
    batch: int = 1
    threads: int = 1
    big: bool = False
    result = LatencyResult


@dataclass(frozen=True)
class Profile(Task[ProfileResult]):
    """Time each kernel of a file on one batch, by ONNX Runtime's profiler.

    Attributes:
        model: path of the file.
        feeds: path of an .npz file with one array for each input.
        folder: where the profiler writes its file; exists.
        runs: that are measured.
        threads: of ONNX Runtime.
    """

    model: str
    feeds: str
    folder: str
    runs: int = 20
    threads: int = 1
    result = ProfileResult


@dataclass(frozen=True)
class Slice:
    """An output, or the part of it from ``start`` to ``stop`` on one axis.

    Attributes:
        output: name of the output.
        axis: None: the whole output.
        start, stop: of the part.
        source: name of the value that fills the part.
    """

    output: str
    axis: int | None = None
    start: int = 0
    stop: int = 0
    source: str = ""


@dataclass(frozen=True)
class CompareOutputs(Task[ComparedOutputs]):
    """Compare the outputs of two files on a few samples; one session is alive at a time.

    Attributes:
        float_model: path of the float file.
        quantized_model: path of the quantized file.
        slices: what is compared.
        samples: inputs to run.
        rows: samples of a batch.
        threads: of ONNX Runtime.
    """

    float_model: str
    quantized_model: str
    slices: tuple[Slice, ...]
    samples: Samples
    rows: int = 1
    threads: int = 1
    result = ComparedOutputs


KINDS: dict[str, type[Task[Any]]] = {
    kind.__name__: kind for kind in (Optimize, Capture, Evaluate, CompareOutputs, TimePair, Profile)
}


def write_tasks(tasks: tuple[Task[Any], ...], path: Path) -> None:
    """Write tasks for the child to read."""
    path.write_text(json.dumps([{"kind": type(t).__name__, **asdict(t)} for t in tasks]))  # type: ignore[call-overload]


def read_tasks(path: Path) -> tuple[Task[Any], ...]:
    """Read the tasks written by :func:`write_tasks`."""
    return tuple(_task(raw) for raw in json.loads(path.read_text()))


def _task(raw: dict[str, Any]) -> Task[Any]:
    kind = KINDS[raw.pop("kind")]
    if "samples" in raw:
        samples = raw["samples"]
        inputs = tuple(_with_tuples(values) for values in samples["inputs"])
        raw["samples"] = Samples(
            **{**samples, "inputs": inputs, "indices": tuple(samples["indices"])}
        )
    if "slices" in raw:
        raw["slices"] = [Slice(**part) for part in raw["slices"]]
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in raw.items()})


def _with_tuples(value: Any) -> Any:
    """Return a value of JSON with its lists as tuples, also nested ones."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def write_feeds(path: Path, feeds: Mapping[str, np.ndarray]) -> None:
    """Write the inputs of a call to a .npz file for the child process.

    Not by ``np.savez``, which refuses an input called ``file``.
    """
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in feeds.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
