"""Hold what the steps of one run read: the float graph, the target, the data, the settings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from qtool.annotation.placement import Placement
from qtool.data import Dataset, InputSpec, split
from qtool.data.inputs import fixed_batch
from qtool.data.source import per_sample
from qtool.errors import DataError
from qtool.graph.compared_output import decisive_value, evaluated_output
from qtool.progress import Progress, silent
from qtool.quant.bit_widths import Bits
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.runtime.row_stack import stack_rows
from qtool.steps.stage_cache import StageCache
from qtool.targets.target import Target

if TYPE_CHECKING:
    from qtool.simulation.fake_quant import Simulation

# Calibration samples that decide whether a step is kept: at most 64, at most a quarter of them.
MAX_HOLDOUT = 64
HOLDOUT_SHARE = 0.25

# Elements of all inputs in one batch of simulated samples; more do not make the kernels faster.
BATCH_ELEMENTS = 1 << 20
MAX_ROWS = 32


@dataclass(frozen=True)
class Context:
    """Everything the steps of one run read; built once, never changed.

    Attributes:
        model: the float graph; read-only once it is rewritten.
        name: the model, for messages.
        sha256: digest of the model, for cache keys.
        target: what the runtime executes in integers.
        bits: the requested widths, layer by layer.
        inputs: of the model, by name.
        calibration: samples that ranges are estimated from; no labels are needed.
        placement: of the recipe: which ops may stay float though they have integer kernels.
        seed: of every random choice.
        device: where torch computes.
        threads: for ONNX Runtime; None: the physical cores.
        trust_code: whether the recipe may run code of its own.
        cache: times the stages and keeps finished results.
        progress: receives the progress of long work.
    """

    model: ir.Model
    name: str
    sha256: str
    target: Target
    bits: Bits
    inputs: Mapping[str, InputSpec]
    calibration: Dataset
    cache: StageCache
    placement: Placement = "all"
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    trust_code: bool = False
    progress: Progress = silent

    @property
    def fixed_batch(self) -> int | None:
        """The batch size that the model demands, or None."""
        return fixed_batch(self.inputs.values())

    @property
    def cache_parts(self) -> tuple[str, ...]:
        """Parts of every step's cache key, besides its options and the plan that it starts from."""
        digest = self.calibration.digest
        return (self.sha256, repr(self.target), repr(self.bits), digest, str(self.seed))

    @property
    def first_output(self) -> str:
        """Name of the value by which plans are compared: the first output of floats, as a rule.

        See :func:`qtool.graph.compared_output.decisive_value`.
        """
        return decisive_value(self.model)

    @property
    def evaluated_output(self) -> str | None:
        """Name of the output by which files are compared; None where all sizes depend on values."""
        return evaluated_output(self.model)

    @cached_property
    def parts(self) -> tuple[Dataset, Dataset]:
        """The calibration samples in two parts: what steps fit to, and what decides about them.

        Raises:
            DataError: there are fewer than two samples.
        """
        if self.calibration.count < 2:
            raise DataError(
                f"calibrate: found {self.calibration.count} sample, but the recipe's ptq steps "
                "need two parts of the calibration data: one to fit to, one to decide whether a "
                "step helped; give at least 2 samples, better 256, or leave `ptq` out"
            )
        holdout = int(min(MAX_HOLDOUT, max(1, HOLDOUT_SHARE * self.calibration.count)))
        return split(self.calibration, holdout, self.seed)

    @property
    def fit(self) -> Dataset:
        """Calibration samples that steps fit to."""
        return self.parts[0]

    @property
    def holdout(self) -> Dataset:
        """Calibration samples that decide whether a step is kept; disjoint from ``fit``."""
        return self.parts[1]

    def feeds(self, dataset: Dataset, rows: int | None = None) -> Iterator[tuple[dict, int]]:
        """Yield (inputs by name, valid rows) of a dataset, at the model's own batch size.

        Args:
            dataset: samples for this model.
            rows: samples of a batch; None: as many as suit the caches of a CPU.
        """
        rows = self.fixed_batch or rows or self.usual_rows
        for batch, valid in dataset.calls(rows, self.fixed_batch is not None):
            yield {name: batch[name] for name in self.inputs}, valid

    @property
    def usual_rows(self) -> int:
        """Samples of a batch that suit the caches of a CPU, or those that the model fixes."""
        size = sum(
            int(np.prod([dim for dim in spec.sample if isinstance(dim, int)]))
            for spec in self.inputs.values()
        )
        return self.fixed_batch or int(np.clip(BATCH_ELEMENTS // max(size, 1), 1, MAX_ROWS))

    def samples_of(self, output: Any, valid: int) -> Any:
        """Return an output of one call of :meth:`feeds`, an array or tensor, samples first."""
        return per_sample(output, valid, self.fixed_batch)

    def without_padding(self, value: Any, valid: int) -> Any:
        """Return a value of one call of :meth:`feeds` without the samples that fill it up.

        Only calls of a fixed batch are filled up, and only values that count its samples.
        """
        padded = value.ndim and len(value) == self.fixed_batch
        return value[:valid] if padded else value

    def simulate(self, plan: QuantPlan, float_weights: bool = False) -> "Simulation":
        """Return the fake-quantized network of a plan, rounded as the file will be.

        Args:
            plan: every grid is calibrated; it need not be frozen.
            float_weights: leave weights and biases unrounded.
        """
        from qtool.simulation.fake_quant import Simulation

        rounded = plan.with_float_weights() if float_weights else freeze(self.model, plan)
        return Simulation(self.model, rounded, self.device)

    def outputs(
        self,
        dataset: Dataset,
        plan: QuantPlan | None = None,
        stage: str | None = None,
        float_weights: bool = False,
    ) -> np.ndarray:
        """Return the first output on all samples, float32 [samples, ...]; large ones in a file.

        Args:
            dataset: samples for this model.
            plan: of the quantized network; None: the float network.
            stage: name under which progress is reported; None: it is not.
            float_weights: of the quantized network, leave weights and biases unrounded.
        """
        from qtool.runtime.chunk_threads import map_chunks
        from qtool.runtime.executor import Executor

        run = (
            Executor(self.model, self.device)
            if plan is None
            else self.simulate(plan, float_weights)
        )

        def output(batch: tuple[dict, int]) -> np.ndarray:
            feeds, valid = batch
            result = run(feeds, outputs=[self.first_output])[self.first_output]
            return np.asarray(self.samples_of(result, valid).float().cpu().numpy())

        def rows() -> Iterator[np.ndarray]:
            done = 0
            for chunk in map_chunks(output, self.feeds(dataset), self.device):
                yield chunk
                done += len(chunk)
                if stage is not None:
                    self.progress(stage, done, dataset.count)

        return stack_rows(rows(), dataset.count)

    @cached_property
    def holdout_reference(self) -> np.ndarray:
        """First output of the float network on ``holdout``."""
        return self.outputs(self.holdout)

    def loss(self, plan: QuantPlan) -> float:
        """Return how far a plan's first output is from the float network's on ``holdout``.

        No labels are read. See :func:`qtool.steps.distance.distance`.
        """
        return float(self.losses(plan).mean())

    def losses(self, plan: QuantPlan, float_weights: bool = False) -> np.ndarray:
        """Return what each sample of ``holdout`` adds to :meth:`loss`, float64 [samples].

        Args:
            plan: every grid is calibrated.
            float_weights: leave weights and biases unrounded.
        """
        from qtool.steps.distance import distances

        outputs = self.outputs(self.holdout, plan, float_weights=float_weights)
        return distances(self.holdout_reference, outputs)
