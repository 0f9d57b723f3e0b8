"""Correct the mean of every layer's output from the BatchNorm in front of it, without data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from math import erf
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from qtool.errors import RecipeError
from qtool.graph.layers import channel_sums, is_layer, oriented
from qtool.graph.queries import by_name, clip_limits, constant, dims, has_one_use, nodes_by_name
from qtool.quant.plan import QuantPlan, Site
from qtool.steps.context import Context
from qtool.steps.step import StepResult

# Below this deviation a normal variable is taken as constant: (limit - mean) / deviation overflows.
LEAST_DEVIATION = 1e-12


@plain_dataclass(frozen=True, eq=False)
class Moments:
    """Mean and variance of a value per channel, float64 [C]."""

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class AnalyticBiasCorrection:
    """Correct biases for the rounding error of weights, from the parameters of BatchNorm alone.

    With beta and gamma of the BatchNorm that was folded into a layer, its output is taken as
    N(beta, gamma^2), from which the mean of the next layer's input follows in closed form::

        E[relu(y)] = beta * (1 - Phi(-beta / gamma)) + gamma * phi(beta / gamma)
        b2 <- b2 - sum((W_quantized - W) * E[x])

    over the kernel and the input channels. Behind a sum of branches both moments add up; a layer
    without BatchNorm passes its input's moments on. Reads no data; does not see the rounding of
    activations, which ``bias_correction`` does. A shift that ``high_bias_absorption`` made is
    taken into account; layers whose bias ``gptq`` chose with their codes are left as they are.

    Source: Nagel et al. 2019, sec. 4.2.1 and appendix C, arXiv:1906.04721.
    Departure: Relu and Clip behind a sum of branches get a closed form too, as of one normal
    variable; the paper sums expectations only.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"bias"})
    guarded: ClassVar[bool] = True

    def __call__(self, plan: QuantPlan, context: Context) -> StepResult:
        """Return the plan with corrected biases.

        Args:
            plan: every grid of a weight is calibrated.
            context: holds the graph; no sample is read.

        Raises:
            RecipeError: no BatchNorm was folded into a layer.
        """
        graph = context.model.graph
        if not any("batchnorm" in node.outputs[0].meta for node in graph if node.outputs):
            raise RecipeError(
                "ptq: analytic_bias_correction reads the BatchNorm behind each layer, and this "
                "model has none that was folded into a layer; use bias_correction, which reads "
                "samples instead"
            )
        original = moments(graph, {}, {})
        shifted = moments(graph, plan.weight_overrides, original)
        nodes, values = nodes_by_name(graph), by_name(graph)
        result, corrected = plan, 0
        for site in plan.sites.values():
            x = shifted.get(site.inputs[0])
            if site.weight is None or site.bias not in values or x is None:
                continue
            if not has_one_use(values[site.bias]) or _is_repaired(plan, site):
                continue
            error = _error(plan, site, nodes[site.name])
            if error is None or x.mean.size != error.shape[0] * error.shape[2]:
                continue
            shift = -channel_sums(error, x.mean)
            result = result.with_bias_shift(site.bias, values[site.bias], shift)
            corrected += 1
        note = f"the biases of {corrected} layers corrected from BatchNorm, without data"
        return StepResult(result, (note,), {"layers": corrected})


def _is_repaired(plan: QuantPlan, site: Site) -> bool:
    """Return whether a step chose the codes of a layer and its bias together, as gptq does."""
    return site.weight in plan.codes and site.bias in plan.weight_overrides


def _error(plan: QuantPlan, site: Site, node: ir.Node) -> np.ndarray | None:
    """Return the weights' rounding error, [groups, outputs, inputs, kernel], float64."""
    name, value = site.weight or "", node.inputs[1]
    weight = constant(value)
    if value is None or weight is None or plan.params(name) is None or not is_layer(node):
        return None
    rounded = plan.rounded_weight(name, value).astype(np.float64)
    return oriented(node, rounded - weight.astype(np.float64))


def clipped(x: Moments, low: float = 0.0, high: float = np.inf) -> Moments:
    """Return the moments of a normal variable behind a Clip (Relu: high infinite).

    Args:
        x: of the normal variable.
        low: limit; finite or minus infinity.
        high: limit; finite or infinity.
    """
    deviation = np.sqrt(x.variance)
    constant_value = deviation < LEAST_DEVIATION
    s = np.where(constant_value, 1.0, deviation)
    (below, density_low), (under_high, density_high) = (
        _normal((v - x.mean) / s) for v in (low, high)
    )
    inside = under_high - below
    first = x.mean * inside + s * (density_low - density_high)
    second = (x.mean**2 + x.variance) * inside + s * x.mean * (density_low - density_high)
    for limit, share, term in ((low, below, density_low), (high, 1 - under_high, -density_high)):
        if np.isfinite(limit):
            first = first + limit * share
            second = second + limit**2 * share + s * limit * term
    mean = np.where(constant_value, np.clip(x.mean, low, high), first)
    return Moments(mean, np.where(constant_value, 0.0, np.maximum(second - first**2, 0)))


def _normal(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distribution function and density of the standard normal."""
    cumulative = np.array([0.5 * (1 + erf(v / 2**0.5)) for v in z.flat]).reshape(z.shape)
    return cumulative, np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)


def moments(
    graph: ir.Graph, overrides: Mapping[str, np.ndarray], original: Mapping[str, Moments]
) -> dict[str, Moments]:
    """Return the moments of the values for which BatchNorm says them, by name.

    Args:
        graph: read only.
        overrides: arrays that replace initializers; a changed bias shifts a mean.
        original: without overrides; empty when those are what is computed.
    """
    result: dict[str, Moments] = {}
    for node in graph:
        inputs = [result.get(v.name or "") if v is not None else None for v in node.inputs]
        y = None
        if is_layer(node) and node.op_type in ("Conv", "Gemm"):
            y = _layer(node, inputs[0], overrides, original)
        elif node.op_type in _RULES:
            y = _RULES[node.op_type](node, inputs)
        if y is not None:
            result[node.outputs[0].name or ""] = y
    return result


def _layer(
    node: ir.Node,
    x: Moments | None,
    overrides: Mapping[str, np.ndarray],
    original: Mapping[str, Moments],
) -> Moments | None:
    weight, bias = constant(node.inputs[1]), node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None:
        return None
    w = oriented(node, weight.astype(np.float64))
    if x is not None and x.mean.size != w.shape[0] * w.shape[2]:
        x = None
    own = constant(bias)
    b = np.zeros(w.shape[0] * w.shape[1]) if own is None else own.astype(np.float64).reshape(-1)
    new = overrides.get(bias.name or "", b) if bias is not None else b
    folded = node.outputs[0].meta.get("batchnorm")
    if folded is None:
        if x is None:
            return None
        return Moments(channel_sums(w, x.mean) + new.reshape(-1), channel_sums(w**2, x.variance))
    beta, gamma = (np.asarray(array, np.float64) for array in folded)
    mean = beta + new.reshape(-1) - b
    before = original.get((node.inputs[0].name if node.inputs[0] is not None else "") or "")
    if x is not None and before is not None:
        mean = mean + channel_sums(w, x.mean - before.mean)
    return Moments(mean, gamma**2)


_Inputs = list[Moments | None]


def _clip(node: ir.Node, inputs: _Inputs) -> Moments | None:
    low, high = clip_limits(node)
    if inputs[0] is None or low is None or high is None:
        return None
    return clipped(inputs[0], low, high)


def _add(node: ir.Node, inputs: _Inputs) -> Moments | None:
    a, b = inputs
    if a is None or b is None or a.mean.size != b.mean.size:
        return None
    return Moments(a.mean + b.mean, a.variance + b.variance)


def _same(node: ir.Node, inputs: _Inputs) -> Moments | None:
    return inputs[0]


def _flat(node: ir.Node, inputs: _Inputs) -> Moments | None:
    """Return the moments behind a Reshape [N, C, 1, 1] -> [N, C]."""
    out = dims(node.outputs[0])
    same = inputs[0] is not None and out is not None and out[1:] == (inputs[0].mean.size,)
    return inputs[0] if same else None


_RULES: dict[str, Callable[[ir.Node, _Inputs], Moments | None]] = {
    "Relu": _clip,
    "Clip": _clip,
    "Add": _add,
    **dict.fromkeys(("Identity", "AveragePool", "GlobalAveragePool"), _same),
    **dict.fromkeys(("Flatten", "Reshape"), _flat),
}
