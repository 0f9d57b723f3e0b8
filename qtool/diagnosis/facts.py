"""Hold what is known of a run when it is diagnosed: settings, plan, measurements, results."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from json import dumps, loads
from math import prod

from qtool.diagnosis.measurements import Measurements
from qtool.graph.queries import by_name, dims
from qtool.metrics.label_order import LabelOrder
from qtool.metrics.preprocessing_scores import PreprocessingCheck
from qtool.quant.plan import QuantPlan, Site
from qtool.quant.primitives import PerTensor
from qtool.report.latency_schema import Latency
from qtool.report.schema import Accuracy, Gate, Kernels, Size
from qtool.steps.context import Context


@dataclass(frozen=True)
class Settings:
    """Settings of the recipe, so that no finding advises what it does already.

    Attributes:
        rewrites: names of the rewrites.
        steps: names of the post-training steps.
        calibrator: name of the calibrator.
        samples: calibration samples.
        layers: the recipe's own widths of layers, pattern -> YAML.
        removes_channels: the float network is smaller than the one that was read.
    """

    rewrites: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    calibrator: str = "mse"
    samples: int = 0
    layers: Mapping[str, str] = field(default_factory=dict)
    removes_channels: bool = False

    def lines_of_8_bits(self) -> tuple[str, ...]:
        """Return the lines of ``bits`` that give all integer weights 8 bits.

        Patterns with fewer bits are raised too: they win over the width of all layers.
        """
        widths = {pattern: loads(text) for pattern, text in self.layers.items()}
        narrow = {
            pattern: dumps({**width, "weights": 8})
            for pattern, width in widths.items()
            if width.get("weights") in range(8)  # not float, not absent
        }
        if not narrow:
            return ("bits: {weights: 8}",)
        return ("bits:", "  weights: 8", f"  layers: {self.layer_line(narrow)}")

    def layer_line(self, widths: Mapping[str, str]) -> str:
        """Return ``bits.layers`` with more patterns; later ones win.

        Args:
            widths: pattern -> bits or float.
        """
        every = {**self.layers, **widths}
        named = (f"{dumps(key, ensure_ascii=False)}: {bits}" for key, bits in every.items())
        return "{" + ", ".join(named) + "}"


@dataclass(frozen=True)
class Facts:
    """Everything the rules read.

    Attributes:
        context: the float network.
        plan: frozen.
        calibrated: the same plan before it was frozen, which steps can change.
        measured: statistics of values and layers.
        settings: of the recipe.
    """

    context: Context
    plan: QuantPlan
    calibrated: QuantPlan
    measured: Measurements
    settings: Settings

    @property
    def layers(self) -> dict[str, Site]:
        """Layers with integer weights, in graph order."""
        return {n: site for n, site in self.plan.sites.items() if site.weight is not None}

    def weight_bits(self, site: str) -> int:
        """Return the width of a layer's weights."""
        return self.plan.qparams(self.plan.sites[site].weight or "").spec.bits

    def weight_count(self, sites: Iterable[str]) -> int:
        """Return the number of weights of layers."""
        names = [self.plan.sites[site].weight or "" for site in sites]
        values = by_name(self.context.model.graph)
        return sum(
            prod(d for d in dims(values[name]) or () if isinstance(d, int)) for name in names
        )

    def is_per_tensor(self, site: str) -> bool:
        """Return whether the weights of a layer have one grid."""
        spec = self.plan.qparams(self.plan.sites[site].weight or "").spec
        return isinstance(spec.granularity, PerTensor)


@dataclass(frozen=True)
class Results:
    """Results of the run that need no trial.

    Attributes:
        accuracy: of both files.
        latency: of both files.
        kernels: that the runtime executes.
        preprocessing: the float model's score with other preprocessings.
        label_order: an order of the classes that fits the outputs far better.
        size: of both files.
        gates: checked.
    """

    accuracy: Accuracy | None = None
    latency: Latency | None = None
    kernels: Kernels | None = None
    preprocessing: PreprocessingCheck | None = None
    label_order: LabelOrder | None = None
    size: Size | None = None
    gates: tuple[Gate, ...] = ()
