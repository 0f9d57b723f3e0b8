"""Hold what a run was asked for and what it reads."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from qtool.data import DataSection, Dataset
from qtool.loading import Loaded
from qtool.metrics.preprocessing_scores import PreprocessingCheck
from qtool.pipeline.search.spread.cluster import Spread, read_address
from qtool.progress import Progress, silent
from qtool.recipe.model import Recipe
from qtool.report.report import Report
from qtool.runtime.torch_threads import torch_threads
from qtool.steps.context import Context


@dataclass(frozen=True)
class RunOptions:
    """Settings of a run that are not part of its recipe.

    Attributes:
        seed: of every random choice.
        device: where torch computes; statistics and verification are always on the CPU.
        threads: for ONNX Runtime; None: the physical cores, and 1 for latency.
        trust_code: allow the recipe to run code of its own.
        requantize: convert a quantized ONNX file back to floats first.
        fresh: ignore the results of earlier runs.
        plan_file: a ``plan.json`` whose grids are used instead of calibrating.
        baseline: the report of an earlier run, which the gate max_regression compares with.
        progress: receives the progress of every stage.
        spread: the processes that the trials of a search, the sites of a scan or the runs of a
            sweep are spread over.
    """

    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    trust_code: bool = False
    requantize: bool = False
    fresh: bool = False
    plan_file: Path | None = None
    baseline: Report | None = None
    progress: Progress = silent
    spread: Spread = field(default_factory=Spread)

    def for_spread(self) -> "RunOptions":
        """Return the options of a command that spreads its work: one thread for each process.

        Then the result does not depend on the number of processes. With one process alone the
        options stay as they are.

        Raises:
            RecipeError: the address of the cluster has another form.
        """
        if self.spread.cluster is not None:
            read_address(self.spread.cluster)
        return replace(self, threads=self.threads or 1) if self.spread.several else self

    def computing(self) -> AbstractContextManager[None]:
        """Compute with the threads of the processes that work is spread over, where there are any.

        Steps that learn have other results with other threads.
        """
        return torch_threads(self.threads or 1) if self.spread.several else nullcontext()

    def of_worker(self) -> "RunOptions":
        """Return the options of a process that does a share of the work."""
        return replace(self, fresh=False, progress=silent, spread=Spread())


@dataclass(frozen=True)
class EvaluationData:
    """Samples that both files are evaluated on; disjoint from calibration and training.

    Attributes:
        dataset: the samples.
        section: the data section of the recipe that they come from.
        indices: their positions among the samples of that section.
        states: folder of the recorded states that they read; None: they are no calls of streams.
    """

    dataset: Dataset
    section: DataSection
    indices: tuple[int, ...]
    states: Path | None = None


@dataclass(frozen=True)
class Prepared:
    """The model and the data of a run, before anything is quantized.

    Attributes:
        recipe: with the target's defaults filled in, paths absolute.
        options: as the command gave them.
        loaded: the float model as it was read; its graph is rewritten in place.
        evaluation: samples that both files are evaluated on.
        context: what the steps read.
        preprocessing: the float model's score with the recipe's preprocessing and, where that is
            low, the usual ones; None where they cannot be compared.
    """

    recipe: Recipe
    options: RunOptions
    loaded: Loaded
    evaluation: EvaluationData
    context: Context
    preprocessing: PreprocessingCheck | None = None

    def first_batch(self, size: int | None = None) -> dict[str, np.ndarray]:
        """Return the inputs of the first evaluation samples, repeated where there are fewer.

        Args:
            size: samples of the batch; None: one, or as many as the model's batch size.
        """
        rows, data = size or self.context.fixed_batch or 1, self.evaluation.dataset
        batch = next(iter(data.take(range(min(rows, data.count))).calls(rows, full=True)))[0]
        return {name: batch[name] for name in self.context.inputs}
