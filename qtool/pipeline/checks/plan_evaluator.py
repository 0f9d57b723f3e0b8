"""Compare captured outputs of the file with the plan, and measure the plan's layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qtool.pipeline.context import Prepared
from qtool.pipeline.stages import Emitted
from qtool.report.schema import IntegerOnly, Parity
from qtool.verification.environment import instruction_sets
from qtool.verification.integer_reference import integer_only, saturating_layers
from qtool.verification.layers.measure import LayerMeasure
from qtool.verification.parity_report import parity_notes, parity_part
from qtool.weights.int16_saturation import adds_pairs, at_risk


@dataclass(frozen=True)
class Captured:
    """Intermediate outputs of the file on a few samples.

    Attributes:
        names: captured output -> value of the plan.
        chosen: positions of the samples among the evaluation samples.
        folder: holds the captures ``0.npz`` ...
        files: number of captures.
    """

    names: Mapping[str, str]
    chosen: tuple[int, ...]
    folder: Path
    files: int


@dataclass(frozen=True)
class PlanEvaluator:
    """Comparison of captured outputs of the file with the plan, layer by layer."""

    prepared: Prepared
    emitted: Emitted
    captured: Captured

    @property
    def _model(self) -> ir.Model:
        return self.prepared.context.model

    def parity(self, in_floats: bool) -> Parity:
        """Count the codes that differ between the file and the integer-exact simulation.

        Args:
            in_floats: the file computes on values, not on codes (QONNX).
        """
        from qtool.verification.parity import compare

        captured = self.captured
        with self.prepared.context.cache.stage("parity") as record:
            counts = compare(
                self._model,
                self.emitted.plan,
                captured.folder,
                captured.names,
                captured.files,
                in_floats=in_floats,
            )
            record.notes += parity_notes(counts)
        return parity_part(counts, len(captured.chosen))

    def integer_only(self, outputs: list[np.ndarray]) -> IntegerOnly:
        """Compare the integer-only reference with the file on captured samples.

        Args:
            outputs: the file's first output for each captured sample.
        """
        captured = self.captured
        with self.prepared.context.cache.stage("integers") as record:
            result = integer_only(
                self._model, self.emitted.plan, captured.folder, captured.names, outputs
            )
            record.notes.append(
                f"the reference without floats: at most {result.max_lsb} apart from the file in a "
                f"layer, {result.share_off:.2g} of all codes differ"
            )
        return result

    def saturating(self) -> list[str]:
        """Return the layers whose pairs of products can saturate, here or on the target."""
        if not (self.prepared.context.target.int16_pairs or adds_pairs(instruction_sets())):
            return []
        layers, captured = at_risk(self._model, self.emitted.plan), self.captured
        if layers:
            with self.prepared.context.cache.stage("saturation") as record:
                record.notes += saturating_layers(
                    self._model, self.emitted.plan, captured.folder, captured.names, captured.files
                )
        return layers

    def measure(self) -> dict[str, LayerMeasure]:
        """Measure each layer on half of the captured samples."""
        from qtool.verification.layers.noise import measure_layers

        context, chosen = self.prepared.context, self.captured.chosen
        with context.cache.stage("layers"):
            samples = self.prepared.evaluation.dataset.take(chosen[: max(1, len(chosen) // 2)])
            feeds = [batch for batch, _ in context.feeds(samples, rows=1)]
            return measure_layers(self._model, self.emitted.plan, feeds)
