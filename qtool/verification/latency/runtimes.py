"""Runtimes that files are timed in, and the machines that have them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from qtool.errors import suggest
from qtool.verification.latency import timing_script

SCRIPT = Path(timing_script.__file__)


@dataclass(frozen=True)
class Runtime:
    """An entry of RUNTIMES.

    Attributes:
        help: one line for the list of runtimes.
        install: the command that installs it.
    """

    help: str
    install: str


RUNTIMES: dict[str, Runtime] = {
    "onnxruntime": Runtime(
        "Time files in ONNX Runtime, by its CPU execution provider.",
        "python3 -m pip install onnxruntime",
    ),
    "openvino": Runtime(
        "Time files in OpenVINO's CPU plugin, with fixed shapes and floats as float32.",
        "python3 -m pip install openvino",
    ),
}
"""Runtime -> entry. ONNX Runtime's other execution providers go by their own names."""

_BUILDS = {
    "OpenVINOExecutionProvider": "python3 -m pip install onnxruntime-openvino",
    "XnnpackExecutionProvider": "build onnxruntime with --use_xnnpack",
    "DnnlExecutionProvider": "build onnxruntime with --use_dnnl",
    "CUDAExecutionProvider": "python3 -m pip install onnxruntime-gpu",
}


@dataclass(frozen=True)
class Machine:
    """A machine and the runtimes that it has.

    Attributes:
        cpu: name of the processor.
        cores: that a process may use.
        python: version.
        versions: of the runtimes, by name; those that are not installed are absent.
        providers: execution providers of ONNX Runtime.
    """

    cpu: str
    cores: int
    python: str
    versions: Mapping[str, str]
    providers: Sequence[str]

    def version(self, runtime: str) -> str | None:
        """Return the version of a runtime; for an execution provider that of ONNX Runtime."""
        return self.versions.get(runtime if runtime in RUNTIMES else "onnxruntime")

    def missing(self, runtime: str) -> str:
        """Return why a runtime is missing, and what to install; "" where it is there."""
        name = runtime if runtime in RUNTIMES else "onnxruntime"
        if name not in self.versions:
            return f"{name} is not installed; {RUNTIMES[name].install}"
        if runtime in RUNTIMES or runtime in self.providers:
            return ""
        build = _BUILDS.get(runtime, f"install an onnxruntime that has it{self._hint(runtime)}")
        names = ", ".join(self.providers)
        return f"onnxruntime {self.versions[name]} has no {runtime}, only {names}; {build}"

    def _hint(self, runtime: str) -> str:
        return suggest(runtime, self.providers)


@dataclass(frozen=True)
class Job:
    """Files to time in turn in one runtime.

    Attributes:
        runtime: a name of RUNTIMES, or an execution provider.
        threads: that compute.
        batch: samples of one run.
        files: name -> the ONNX file and its external data.
        feeds: name -> an .npz file with the inputs.
        big: one file is in memory at a time.
    """

    runtime: str
    threads: int
    batch: int
    files: Mapping[str, Sequence[Path]]
    feeds: Mapping[str, Path]
    big: bool = False

    def to_json(self, place: Callable[[str, Path], str]) -> dict[str, Any]:
        """Return the job as the script reads it.

        Args:
            place: returns where a file lies: (name, path) -> path.
        """
        return {
            "runtime": self.runtime,
            "threads": self.threads,
            "batch": self.batch,
            "files": {name: place(name, paths[0]) for name, paths in self.files.items()},
            "feeds": {name: place(name, path) for name, path in self.feeds.items()},
            "big": self.big,
        }


@dataclass(frozen=True)
class JobResult:
    """Outcome of a job.

    Attributes:
        ms: name of a file -> median milliseconds.
        runs: of each file.
        reasons: name -> why the file could not be timed.
    """

    ms: Mapping[str, float]
    runs: int
    reasons: Mapping[str, str]


class Runner(Protocol):
    """A machine that performs jobs."""

    @property
    def name(self) -> str:
        """The machine in the report; "" for this one."""

    def probe(self) -> Machine:
        """Describe the machine and its runtimes.

        Raises:
            RecipeError: the machine cannot be reached or cannot run the script.
        """

    def perform(self, jobs: Sequence[Job], folder: Path) -> Iterator[JobResult]:
        """Perform jobs in order, each in a process of its own; yield their results.

        Args:
            jobs: not empty.
            folder: an existing folder for temporary files.
        """


@dataclass(frozen=True)
class ThisMachine:
    """The machine that qtool runs on."""

    @property
    def name(self) -> str:
        """See :meth:`Runner.name`."""
        return ""

    def probe(self) -> Machine:
        """See :meth:`Runner.probe`."""
        command = [sys.executable, str(SCRIPT), "probe"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Machine(**json.loads(done.stdout.splitlines()[-1]))

    def perform(self, jobs: Sequence[Job], folder: Path) -> Iterator[JobResult]:
        """See :meth:`Runner.perform`."""
        for job in jobs:
            plain = job.to_json(lambda name, path: str(path))
            yield JobResult(**timing_script.perform(plain, str(folder / "job.json")))
