"""Move large biases in front of an activation function into the next layers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from itertools import islice
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from qtool.errors import RecipeError
from qtool.graph.layers import channel_sums, is_layer, oriented_weight
from qtool.graph.queries import (
    attribute,
    by_name,
    clip_limits,
    has_one_use,
    nodes_by_name,
    readers,
    sole_reader,
)
from qtool.quant.plan import QuantPlan
from qtool.quant.primitives import QuantParams, QuantSpec
from qtool.runtime.executor import Executor, Observe
from qtool.steps.context import Context
from qtool.steps.step import StepResult

# Batches of ``fit`` that activation ranges and the float error are measured on.
BATCHES = 8


@plain_dataclass(frozen=True, eq=False)
class _Pair:
    """A layer, what its channels can give away, the activation, and the layers that read it.

    Attributes:
        bias: name of the first layer's bias.
        activation: the value behind Relu or Clip.
        shift: c of every channel, float64 [C].
        readers: nodes that read the activation, each with the name of its bias.
    """

    bias: str
    activation: str
    shift: np.ndarray
    readers: tuple[tuple[ir.Node, str], ...]


@dataclass(frozen=True)
class HighBiasAbsorption:
    """Move the part of a bias that an activation function always passes on into the next layers.

    With beta and gamma of the BatchNorm that was folded into a layer, its output is taken as
    N(beta, gamma^2). Per channel, for the layers 1 and 2 around a Relu or Clip::

        c = max(0, beta - sigmas * gamma),   b1 -= c,   b2 += sum(W2 * c)

    over the kernel and the input channels. The activation's range shrinks, and its grid with it:
    by the factor that the largest value falls by on calibration samples. Approximate: outputs
    below c are cut off; the notes say how far the float network's output moves. A channel in front
    of a Clip counts only where beta + sigmas * gamma stays below the upper limit.

    Source: Nagel et al. 2019, sec. 4.1.3, arXiv:1906.04721.
    Departure: layers that pad with zeros are left out unless ``padded`` is set: at their borders c
    is missing from the sum, which moved the output of MobileNetV2 three times as far as the rest.

    Attributes:
        sigmas: deviations below the mean that an output is taken to stay above.
        padded: absorb also into layers that pad with zeros.
    """

    sigmas: Annotated[float, Field(gt=0)] = 3.0
    padded: bool = False

    needs: ClassVar[frozenset[str]] = frozenset({"bias", "samples"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with changed biases and the grids of the activations between.

        Args:
            plan: every grid is calibrated.
            context: holds the graph; some of the ``fit`` samples are read.

        Raises:
            RecipeError: no BatchNorm was folded into a layer.
        """
        pairs = list(self._pairs(plan, context.model))
        if not pairs:
            return StepResult(plan, ("no layer has a bias that could be absorbed",))
        changed, values = plan, by_name(context.model.graph)
        for pair in pairs:
            changed = changed.with_bias_shift(pair.bias, values[pair.bias], -pair.shift)
            for node, bias in pair.readers:
                shift = _absorbed(node, pair.shift)
                changed = changed.with_bias_shift(bias, values[bias], shift)
        largest, error = _compare(context, plan, changed, pairs)
        changed = replace(changed, grids=_shrunk(changed, largest))
        channels = sum(int((pair.shift > 0).sum()) for pair in pairs)
        note = (
            f"{channels} channels of {len(pairs)} layers absorbed; the float network's output "
            f"moves by {error:.2e} of its norm"
        )
        return StepResult(changed, (note,), {"channels": channels, "float_error": error})

    def _pairs(self, plan: QuantPlan, model: ir.Model) -> Iterator[_Pair]:
        """Yield the layers whose bias can move, in graph order."""
        nodes, values, seen = nodes_by_name(model.graph), by_name(model.graph), False
        biases = {
            site.name: site.bias
            for site in plan.sites.values()
            if site.weight and site.bias in values and has_one_use(values[site.bias])
        }
        for name, bias in biases.items():
            node = nodes[name]
            moments = node.outputs[0].meta.get("batchnorm")
            seen = seen or moments is not None
            activation = sole_reader(node.outputs[0])
            if moments is None or activation is None or activation.op_type not in ("Relu", "Clip"):
                continue
            low, high = clip_limits(activation)
            out = activation.outputs[0]
            layers = readers(out)
            if low != 0 or high is None or not layers or out.is_graph_output():
                continue
            if not all(self._accepts(reader, out, biases) for reader in layers):
                continue
            beta, gamma = (np.asarray(array, np.float64) for array in moments)
            shift = np.maximum(beta - self.sigmas * gamma, 0)
            shift = np.where(beta + self.sigmas * gamma <= high, shift, 0)
            if shift.any():
                into = tuple((reader, biases[reader.name or ""] or "") for reader in layers)
                yield _Pair(bias or "", out.name or "", shift, into)
        if not seen:
            raise RecipeError(
                "ptq: high_bias_absorption reads the BatchNorm behind each layer, and this model "
                "has none that was folded into a layer; leave the step out, or export the model "
                "with its BatchNorm nodes"
            )

    def _accepts(self, reader: ir.Node, x: ir.Value, biases: Mapping[str, str | None]) -> bool:
        if not is_layer(reader) or reader.name not in biases or reader.inputs[0] is not x:
            return False
        if reader.op_type not in ("Conv", "Gemm"):
            return False
        auto = str(attribute(reader, "auto_pad", "NOTSET"))
        return self.padded or not (any(attribute(reader, "pads", ())) or auto.startswith("SAME"))


def _absorbed(node: ir.Node, shift: np.ndarray) -> np.ndarray:
    """Return sum(W * c) over kernel and input channels, float64 [outputs]."""
    return channel_sums(oriented_weight(node), shift)


def _compare(
    context: Context, before: QuantPlan, after: QuantPlan, pairs: list[_Pair]
) -> tuple[dict[str, float], float]:
    """Return by how much each activation's largest value falls, and the float output's error."""
    names = [pair.activation for pair in pairs]
    outputs = list(dict.fromkeys((*names, context.first_output)))
    executor = Executor(context.model, context.device)
    peaks = np.zeros((2, len(names)))
    noise = power = 0.0
    with torch.inference_mode():
        for feeds, valid in islice(context.feeds(context.fit), BATCHES):
            y = []
            for k, plan in enumerate((before, after)):
                values = executor(feeds, _replacing(plan), outputs)
                largest = [
                    float(context.without_padding(values[name], valid).max()) for name in names
                ]
                peaks[k] = np.maximum(peaks[k], largest)
                y.append(context.samples_of(values[context.first_output], valid).double())
            noise += float((y[0] - y[1]).square().sum())
            power += float(y[0].square().sum())
    ratios = np.where(peaks[0] > 0, peaks[1] / np.maximum(peaks[0], 1e-30), 1.0)
    return dict(zip(names, ratios.tolist(), strict=True)), (noise / (power or 1.0)) ** 0.5


def _replacing(plan: QuantPlan) -> Observe:
    """Return a hook that puts the plan's float arrays in the place of the model's."""
    replaced = {k: torch.from_numpy(np.asarray(v)) for k, v in plan.weight_overrides.items()}

    def observe(value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        other = replaced.get(value.name or "")
        return tensor if other is None else other.to(tensor.device)

    return observe


def _shrunk(plan: QuantPlan, ratios: Mapping[str, float]) -> dict[str, QuantSpec | QuantParams]:
    """Return the grids; those that one activation has for itself and that start at 0 shrink."""
    grids, members = dict(plan.grids), plan.members()
    for name, ratio in ratios.items():
        grid = plan.grid_of.get(name, "")
        params = grids.get(grid)
        if not isinstance(params, QuantParams) or members[grid] != [name] or not 0 < ratio < 1:
            continue
        if np.all(params.zero_point == params.spec.qmin):
            grids[grid] = replace(params, scale=(params.scale * ratio).astype(np.float32))
    return grids
