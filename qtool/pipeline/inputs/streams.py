"""Record the states of streams once, with the float network, as inputs of ordinary samples."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.data import DataSection, Dataset, InputSpec
from qtool.data.streams.recorded_states import record_states, with_recorded_states
from qtool.errors import RecipeError, suggest
from qtool.graph.queries import dims
from qtool.progress import Progress, silent
from qtool.runtime.ort_session import OrtSession
from qtool.steps.stage_cache import StageCache


def check_loop(section: DataSection, model: ir.Model, inputs: Mapping[str, InputSpec]) -> None:
    """Refuse names under ``loop`` that the model does not have.

    Args:
        section: the section of the recipe.
        model: the float graph.
        inputs: the model's inputs by name.

    Raises:
        RecipeError: an output or an input does not exist, or the output is not computed.
    """
    outputs = [value.name or "" for value in model.graph.outputs if value.producer() is not None]
    for output, fed in (section.loop or {}).items():
        for name, names, kind in ((output, outputs, "output"), (fed, inputs, "input")):
            if name not in names:
                raise RecipeError(
                    f"loop: {output}: {fed} names the {kind} {name}, but the model has "
                    f"{', '.join(names)}{suggest(name, names)}; expected OUTPUT: INPUT"
                )


def with_next_states(inputs: Mapping[str, InputSpec], model: ir.Model) -> dict[str, InputSpec]:
    """Return the inputs with the outputs that may be their next states: of one shape and type.

    Of several outputs the one with the most similar name is taken.
    """
    result, taken = dict(inputs), set[str]()
    for name, spec in inputs.items():
        names = [
            value.name or ""
            for value in model.graph.outputs
            if value.producer() is not None
            and value.dtype is not None
            and str(value.dtype.numpy()) == spec.dtype
            and _same_sizes(dims(value), spec.shape)
            and value.name not in taken
        ]
        if names:
            best = max(names, key=lambda other: SequenceMatcher(None, name, other).ratio())
            result[name] = replace(spec, next_state=best)
            taken.add(best)
    return result


def _same_sizes(shape: tuple[int | str | None, ...] | None, other: tuple[object, ...]) -> bool:
    """Return whether two shapes of the same rank contradict each other in no fixed size."""
    return (
        shape is not None
        and len(shape) == len(other)
        and not any(
            isinstance(a, int) and isinstance(b, int) and a != b
            for a, b in zip(shape, other, strict=True)
        )
    )


@dataclass(frozen=True)
class StreamRecorder:
    """The float network that records the states of streams, and where they are kept.

    Attributes:
        model: the float graph as it was read.
        inputs: its inputs by name.
        cache: keeps the recorded states.
        parts: what the states depend on besides the data, such as the model's digest.
        progress: receives the progress.
    """

    model: ir.Model
    inputs: Mapping[str, InputSpec]
    cache: StageCache
    parts: tuple[str, ...] = ()
    progress: Progress = silent

    def with_states(self, dataset: Dataset) -> tuple[Dataset, Path | None]:
        """Return calls of streams with the states that the float network has in front of them.

        Args:
            dataset: samples; without a loop they are returned as they are.

        Returns:
            The samples, and the folder of their states.
        """
        loop = dataset.loop
        if loop is None:
            return dataset, None
        digests = (dataset.digest, str(dict(loop.outputs)), str(dict(self.inputs)))
        folder = self.cache.path_for("states", (*self.parts, *digests))
        if self.cache.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.is_dir():
            self._record(dataset, folder)
        return with_recorded_states(dataset, self.inputs, folder), folder

    def _record(self, dataset: Dataset, folder: Path) -> None:
        """Write the states to a folder, which appears when it is complete."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (
            # Several processes that train as one may record at the same time.
            tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch,
            OrtSession(self.model, dataset.fed_back) as session,
        ):
            complete = Path(scratch) / "states"
            complete.mkdir()

            def compute(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
                return session({name: batch[name] for name in self.inputs})

            for done in record_states(dataset, self.inputs, compute, complete):
                self.progress("states", done, dataset.count)
            try:
                complete.rename(folder)
            except OSError:  # another process was first, and may already read its states
                if not folder.is_dir():
                    raise
