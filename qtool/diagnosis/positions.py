"""Positions that a network chooses among values, of which nearly equal ones change places.

MaxPool with indices, TopK, ArgMax and ArgMin turn a rounding error into another position, and what
is read or written there into an error as large as the values. More bits for the compared values
alone change nothing: a small segmentation network with MaxUnpool has 19.3 dB, 19.4 where the layers
in front of its MaxPools are float, and 25.0 where all layers up to the last MaxPool are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qtool.data import Dataset
from qtool.graph.queries import name_of, readers
from qtool.metrics.fidelity import finite_powers, power_db
from qtool.quant.plan import QuantPlan
from qtool.report.schema import Finding
from qtool.steps.context import Context

# Op -> which of its outputs holds positions.
POSITIONS = {"MaxPool": 1, "TopK": 1, "ArgMax": 0, "ArgMin": 0}
# What the float network's positions must gain, in dB, to be named: half of the noise.
MIN_GAIN_DB = 3.0


def chosen_positions(model: ir.Model) -> list[ir.Value]:
    """Return the values that hold positions, and that another node reads."""
    values = []
    for node in model.graph:
        at = POSITIONS.get(node.op_type)
        if at is not None and len(node.outputs) > at and readers(node.outputs[at]):
            values.append(node.outputs[at])
    return values


def position_finding(
    context: Context, plan: QuantPlan, samples: Dataset, outputs: Sequence[str]
) -> Finding | None:
    """Return what exchanged positions cost the worst of some outputs; None where it is little.

    The quantized network is simulated twice: as it is, and with the float network's positions.

    Args:
        context: the float network.
        plan: frozen.
        samples: of calibration, that no step has read.
        outputs: of floats, of fixed size.
    """
    values = chosen_positions(context.model)
    if not values or not outputs:
        return None
    measured = _measure(context, plan, samples, values, outputs)
    gains = {name: output.gain for name, output in measured.outputs.items()}
    worst = max(gains, key=lambda name: gains[name])
    if gains[worst] < MIN_GAIN_DB:
        return None
    exchanged = max(values, key=lambda value: measured.share[name_of(value)])
    node, row = exchanged.producer(), measured.outputs[worst]
    share = 100 * measured.share[name_of(exchanged)]
    assert node is not None
    return Finding(
        finding=(
            f"nearly equal values change places: {node.op_type} {node.name} chooses other "
            f"positions than in the float network, and the output {worst} follows them"
        ),
        evidence=(
            f"{share:.2g} % of its positions differ; {worst} has "
            f"{row.own:.1f} dB, and {row.fixed:.1f} dB with the float network's positions "
            f"({measured.samples} calibration samples); where the values are as good as equal the "
            "exchange is no loss, which a metric of the task shows and this ratio does not"
        ),
    )


@dataclass(frozen=True)
class _Output:
    """Signal to noise of an output, in dB: as it is, and with the float network's positions."""

    own: float
    fixed: float

    @property
    def gain(self) -> float:
        return 0.0 if self.own == self.fixed else self.fixed - self.own


@dataclass(frozen=True)
class _Measured:
    """Outputs by name, the share of positions that differ by value, and the number of samples."""

    outputs: dict[str, _Output]
    share: dict[str, float]
    samples: int


def _measure(
    context: Context,
    plan: QuantPlan,
    samples: Dataset,
    values: Sequence[ir.Value],
    outputs: Sequence[str],
) -> _Measured:
    """Simulate the quantized network, as it is and with the float network's positions."""
    from qtool.runtime.executor import Executor

    network, simulation = Executor(context.model, context.device), context.simulate(plan)
    names = [name_of(value) for value in values]
    observed = [*dict.fromkeys([*outputs, *names])]
    powers = {name: np.zeros((2, 2)) for name in outputs}
    differ, total = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for feeds, valid in context.feeds(samples):
        exact = network(feeds, outputs=observed)
        own = simulation(feeds, observed)
        fixed = simulation({**feeds, **{name: exact[name] for name in names}}, outputs)
        for name in outputs:
            reference, *tests = (
                context.without_padding(result[name].float().cpu().numpy(), valid)
                for result in (exact, own, fixed)
            )
            powers[name] += [finite_powers(reference, test) for test in tests]
        for name in names:
            same = context.without_padding((exact[name] == own[name]).cpu().numpy(), valid)
            differ[name] += int(same.size - same.sum())
            total[name] += same.size
    decibels = {
        name: _Output(*(power_db(*pair) or float("inf") for pair in pairs))
        for name, pairs in powers.items()
    }
    share = {name: differ[name] / max(1, total[name]) for name in names}
    return _Measured(decibels, share, samples.count)
