"""Measure what a change of a plan would gain: the simulated network with some values replaced."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir
import torch

from qtool.data import Dataset
from qtool.graph.original import original
from qtool.quant.plan import QuantPlan
from qtool.simulation.fake_quant import Simulation
from qtool.steps.context import Context
from qtool.steps.distance import distance

# Samples of other classes than the float network's from which their share is a measure.
MIN_CHANGED = 5

Replacement = Callable[[torch.Tensor], torch.Tensor]
"""The form of a value in a trial, from its float tensor; of weights and activations alike."""


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """Return the float value: not quantized."""
    return tensor


@dataclass(frozen=True)
class Trials:
    """Trials of one plan on samples that no step has read.

    Attributes:
        context: the float network.
        plan: frozen.
        samples: calibration samples.
        drop: points that the file lost; shares of the error are converted to points by it.
    """

    context: Context
    plan: QuantPlan
    samples: Dataset
    drop: float
    _shares: dict[frozenset[tuple[str, Replacement]], float] = field(default_factory=dict)

    def gain(
        self, replacements: Mapping[str, Replacement], over: Mapping[str, Replacement] | None = None
    ) -> float:
        """Return the points that a change would gain: the drop times the share it recovers.

        The share is that of the samples which change their class under the plan but not in the
        trial; with fewer than MIN_CHANGED such samples, or without classes, that of the distance
        between the outputs (:func:`qtool.steps.distance.distance`).

        Args:
            replacements: value, weight or bias -> its form in the trial; nothing: no gain.
            over: another change, whose share is subtracted; None: the plan itself, of share 0.
        """
        return self._points(self._share(replacements) - self._share(over or {}))

    def gain_of_plan(self, plan: QuantPlan) -> float:
        """Return the points that another plan would gain, measured as in :meth:`gain`.

        Args:
            plan: every grid is calibrated.
        """
        return self._points(self._share_of(self.context.outputs(self.samples, plan)))

    def _points(self, share: float) -> float:
        return round(self.drop * min(max(share, 0.0), 1.0), 4)

    def _share(self, replacements: Mapping[str, Replacement]) -> float:
        """Return the share of the error that a change recovers; negative where it adds to it."""
        if not replacements:
            return 0.0
        key = frozenset(replacements.items())
        if key not in self._shares:
            self._shares[key] = self._share_of(self._run(replacements))
        return self._shares[key]

    def _share_of(self, outputs: np.ndarray) -> float:
        before, after = self._changed(self._base), self._changed(outputs)
        if before is not None and after is not None and before >= MIN_CHANGED:
            return (before - after) / before
        old, new = (distance(self._reference, each) for each in (self._base, outputs))
        return (old - new) / old if old > 0 else 0.0

    @cached_property
    def _reference(self) -> np.ndarray:
        # Where channels were removed, the drop is that from the whole network.
        whole = replace(self.context, model=original(self.context.model))
        return whole.outputs(self.samples)

    @cached_property
    def _simulation(self) -> Simulation:
        return Simulation(self.context.model, self.plan, self.context.device)

    @cached_property
    def _base(self) -> np.ndarray:
        return self._run({})

    def _changed(self, outputs: np.ndarray) -> int | None:
        """Return how many samples have another class than in the float network, if any class."""
        if outputs.ndim != 2 or outputs.shape[1] < 2:
            return None
        return int(np.sum(outputs.argmax(1) != self._reference.argmax(1)))

    def _run(self, replacements: Mapping[str, Replacement]) -> np.ndarray:
        simulation, output = self._simulation, self.context.first_output

        def observe(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
            replacement = replacements.get(value.name or "")
            if replacement is None:
                return simulation.observe(value, tensor)
            return replacement(tensor)

        parts = []
        for feeds, valid in self.context.feeds(self.samples):
            with torch.inference_mode():
                result = simulation.executor(feeds, observe, [output], simulation.raw)[output]
            parts.append(self.context.samples_of(result, valid).float().cpu().numpy())
        return np.concatenate(parts)
