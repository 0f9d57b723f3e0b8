"""Simulate and write a quantized network: the last functions of the Python API."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.api.model import Model
from qtool.api.quantization import Plan
from qtool.emitters import emit_model, save_model
from qtool.errors import ModelError, RecipeError, suggest
from qtool.pipeline.provenance import write_provenance
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.recipe.choice import read_choice
from qtool.report.schema import Provenance
from qtool.version import __version__

if TYPE_CHECKING:
    from torch import nn


def simulate(
    model: Model,
    plan: Plan,
    device: str = "cpu",
    *,
    quantizer: str | Mapping[str, Any] | None = None,
    batchnorm: str = "live",
) -> "nn.Module":
    """Return the quantized network as a torch module: values on a grid are rounded to it.

    Its ``forward`` takes the model's inputs by position or by name, as tensors or arrays, and
    returns the one output, or all in a tuple. Without a ``quantizer`` rounding has no gradient and
    outputs are detached. With one the module trains in a loop of your own: weights, biases,
    BatchNorm and the scales of all grids are parameters; call ``module.project()`` after every
    step of the optimizer, and ``module.plan()`` for the plan learned, which :func:`emit` writes. In
    evaluation mode it computes what the file will.

    Args:
        model: from :func:`load`.
        plan: from :func:`quantize`, for this model; training starts there.
        device: where to compute.
        quantizer: how grids learn: a name of ``qtool list quantizers``, or one with options.
        batchnorm: for training: ``live`` (batch statistics), ``frozen`` (running ones), ``folded``
            (into the weights, as the file has it).

    Raises:
        RecipeError: the plan was made for another model, a name is unknown, or the plan has a grid
            that cannot be trained.
    """
    _check_pair(model, plan, "qtool.simulate")
    if quantizer is not None:
        return _trainable(model, plan, device, quantizer, batchnorm)
    from qtool.simulation.fake_quant import Simulation
    from qtool.simulation.module import SimulatedModule

    simulation = Simulation(plan._graph, plan.quantization, device)
    return SimulatedModule(simulation, tuple(model.inputs), model.outputs)


def _trainable(
    model: Model, plan: Plan, device: str, quantizer: str | Mapping[str, Any], batchnorm: str
) -> "nn.Module":
    from qtool.qat.fake_quant_model import BATCHNORM, QatNetwork
    from qtool.qat.quantizers import QAT_QUANTIZERS
    from qtool.qat.trainable_module import TrainableModule

    chosen = read_choice(quantizer, "quantizers", "qtool.simulate: quantizer")
    if batchnorm not in BATCHNORM:
        raise RecipeError(
            f'qtool.simulate: batchnorm: found "{batchnorm}", expected one of '
            f"{', '.join(BATCHNORM)}{suggest(batchnorm, BATCHNORM)}"
        )

    def finish(learned: QuantPlan) -> Plan:
        return replace(plan, quantization=freeze(plan._graph, learned))

    network = QatNetwork(
        plan._graph, plan.quantization, chosen.build(QAT_QUANTIZERS), batchnorm, device
    )
    return TrainableModule(network, tuple(model.inputs), finish)


def emit(model: Model, plan: Plan, path: str | Path) -> Path:
    """Write the quantized network in its target's own form, mostly QDQ ONNX, whole or not at all.

    Args:
        model: from :func:`load`.
        plan: from :func:`quantize`, for this model.
        path: the file; above 1.5 GB the weights lie beside it in ``<path>.data``.

    Returns:
        The path.

    Raises:
        RecipeError: the plan was made for another model, or the file cannot be written.
    """
    _check_pair(model, plan, "qtool.emit")
    if not isinstance(path, str | Path):
        raise RecipeError(
            f"qtool.emit: found a {type(path).__name__} as the path, expected a file name"
        )
    target = Path(path)
    if target.is_dir():
        raise RecipeError(f"{target}: is a folder; expected a file name to write to")
    form = plan.target.formats[0]
    emitted = emit_model(plan._graph, plan.quantization, plan.target, form)[0]
    own = Provenance(qtool=__version__, model_sha256=model.sha256)
    write_provenance(emitted.metadata_props, own)
    save_model(emitted, target)
    return target


def _check_pair(model: Model, plan: Plan, where: str) -> None:
    """Raise where the arguments are no model and plan that belong together.

    Raises:
        ModelError: ``model`` is not what :func:`load` returns.
        RecipeError: ``plan`` is not what :func:`quantize` returns, or of another model.
    """
    if not isinstance(model, Model):
        raise ModelError(
            f"{where}: found a {type(model).__name__} as the model, expected what qtool.load "
            "returns"
        )
    if not isinstance(plan, Plan):
        raise RecipeError(
            f"{where}: found a {type(plan).__name__} as the plan, expected what qtool.quantize "
            "returns"
        )
    if plan.model is not model:
        raise RecipeError(
            f"{where}: the plan was made for {plan.model.name} as another qtool.load read it, not "
            f"for this {model.name}; pass the model that was quantized"
        )
