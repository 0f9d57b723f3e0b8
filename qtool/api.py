"""The Python API: load a float network, quantize it with data, simulate it, write it.

The same functions as in ``qtool ptq``, called one after another; see docs/api.md.
"""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
import onnx_ir as ir

from qtool.data import Dataset, InputSpec, check_sample_shapes, open_dataset
from qtool.data.spool import spool_batches
from qtool.emitters import emit_model, save_model
from qtool.errors import DataError, ModelError, RecipeError, suggest
from qtool.loading import Loaded, bind_shapes
from qtool.pipeline.load_model import input_specs, load_any
from qtool.pipeline.stages import quantize as quantize_graph
from qtool.pipeline.stages import rewrite
from qtool.ptq import PTQ_STEPS
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_io import write_plan
from qtool.recipe.choice import read_choice
from qtool.recipe.layer_bits import resolve_bits
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.model import Recipe
from qtool.recipe.network import as_torch, carries_code
from qtool.recipe.target_defaults import apply_target_defaults
from qtool.steps.context import Context
from qtool.steps.stage_cache import temporary_cache
from qtool.targets.loader import load_target
from qtool.targets.target import Target

if TYPE_CHECKING:
    from torch import nn

OPSET = 21


@dataclass(frozen=True, eq=False)
class Model:
    """A float network, as :func:`load` read it. Quantizing does not change it.

    Attributes:
        name: what it was loaded from.
        path: the float ONNX file; of a torch network a temporary one, which lives as long as this.
        sha256: digest of what it was loaded from.
        inputs: by name, in order, with shape and dtype.
        outputs: names, in order.
        notes: what loading changed or found, such as the difference between torch and ONNX.
    """

    name: str
    path: Path
    sha256: str
    inputs: Mapping[str, InputSpec]
    outputs: tuple[str, ...]
    notes: tuple[str, ...]
    _graph: ir.Model = field(repr=False)


@dataclass(frozen=True, eq=False)
class Plan:
    """A quantized network: every grid, scale, zero point and code.

    Attributes:
        model: what it was made for.
        quantization: the plan itself.
        target: the runtime it is for.
        notes: which rewrites applied, and what calibration and rounding have to say.
    """

    model: Model
    quantization: QuantPlan = field(repr=False)
    target: Target = field(repr=False)
    notes: tuple[str, ...]
    _graph: ir.Model = field(repr=False)

    def save(self, folder: str | Path) -> None:
        """Write ``plan.json`` and ``plan.npz`` into a folder, as ``qtool ptq`` does."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_plan(self.quantization, Path(folder))


def load(
    source: "str | Path | Mapping[str, Any] | nn.Module",
    inputs: Any = None,
    *,
    trust_code: bool = False,
    requantize: bool = False,
) -> Model:
    """Read a float network.

    Args:
        source: an ONNX, ``.pt2`` or TorchScript ``.pt`` file; what a recipe says under ``model``,
            such as ``{"torch": "nets:one", "weights": FILE, "input": {"x": ["N", 3, 8, 8]}}``
            with paths relative to the working directory; or a torch module.
        inputs: for a torch module: one example tensor, several in a tuple, or a mapping of names
            to tensors. Their first dimension, the batch, stays dynamic.
        trust_code: allow files and mappings that run code of their own to do so.
        requantize: turn an ONNX file that is quantized already back to floats first.

    Raises:
        ModelError: the file, the mapping or the module is wrong.
        RecipeError: it runs code and is not trusted, or the mapping has wrong keys.
        UnsupportedError: torch cannot export it, it is quantized already, or its quantization
            cannot be turned back.
    """
    if not isinstance(source, str | Path | Mapping):
        if requantize:
            raise ModelError("requantize: found a torch module, expected an ONNX file")
        return _from_module(source, inputs)
    if inputs is not None:
        raise ModelError("inputs: only a torch module needs examples; leave them out")
    named: Any = dict(source) if isinstance(source, Mapping) else str(source)
    data = {"model": named, "calibrate": {"arrays": "in memory"}}
    model = recipe_from_keywords(data, "qtool.load", Path.cwd(), files=False).model
    if carries_code(model) and not (trust_code or requantize):
        raise RecipeError(
            f"qtool.load: loading {as_torch(model).torch} runs the code it holds; read it first, "
            "then pass trust_code=True"
        )
    return _with_temporary_file(
        lambda path: load_any(model, lambda parts: path, OPSET, requantize=requantize)
    )


def _from_module(module: Any, inputs: Any) -> Model:
    from torch import nn

    from qtool.loading.pytorch.loader import export_to, inputs_like

    if not isinstance(module, nn.Module):
        raise ModelError(
            f"qtool.load: found a {type(module).__name__}, expected a path, a mapping as under "
            "`model` in a recipe, or a torch.nn.Module"
        )
    if inputs is None:
        raise ModelError("qtool.load: a torch module needs `inputs`: one example of each")
    return _with_temporary_file(
        lambda path: export_to(module, inputs_like(module, inputs), path, OPSET)
    )


def _with_temporary_file(export: Callable[[Path], Loaded]) -> Model:
    """Return a model whose ONNX file lies in a folder that is removed with the model."""
    folder = tempfile.mkdtemp(prefix="qtool-")
    try:
        model = _model(export(Path(folder) / "float.onnx"))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model


def _model(loaded: Loaded) -> Model:
    graph = loaded.model
    return Model(
        loaded.shown,
        loaded.path,
        loaded.sha256,
        input_specs(graph, loaded.shown),
        tuple(str(v.name) for v in graph.graph.outputs),
        loaded.notes,
        graph,
    )


class QuantizeOptions(TypedDict, total=False):
    """Options of :func:`quantize`, as in a recipe.

    Attributes:
        target: the runtime: a name of ``qtool list targets``, or a .yaml file.
        bits: as under ``bits`` in a recipe: ``{"layers": {"first": "float"}}``.
        method: a calibrator, as under ``calibrate.method``.
        rewrites: instead of the target's own list.
        ptq: post-training steps, as under ``ptq``.
        threads: for ONNX Runtime; default the physical cores.
        seed: of every random choice.
        trust_code: allow a reader that is code to run.
    """

    target: str
    bits: Mapping[str, Any] | None
    method: str | Mapping[str, Any]
    rewrites: Sequence[str] | None
    ptq: Sequence[str | Mapping[str, Any]]
    threads: int | None
    seed: int
    trust_code: bool


def quantize(
    model: Model,
    data: "Dataset | Mapping[str, Any] | Iterable[Any]",
    **options: Unpack[QuantizeOptions],
) -> Plan:
    """Choose every grid from calibration data and round every weight once.

    Args:
        model: from :func:`load`.
        data: what a recipe says under ``calibrate``, such as ``{"images": "train", "count": 512}``;
            a Dataset; or batches: each an array or tensor, a tuple in the order of the inputs
            (what follows them, such as labels, is left out), or a mapping of input names.
        options: see :class:`QuantizeOptions`.

    Raises:
        QtoolError: the data does not fit the model, a name is unknown, nothing can be quantized.
    """
    if not isinstance(model, Model):
        raise ModelError(
            f"qtool.quantize: found a {type(model).__name__} as the model, expected what "
            "qtool.load returns: qtool.quantize(qtool.load(FILE), data)"
        )
    _check_options(options)
    recipe = _recipe(model, data, options)
    target = load_target(recipe.target)
    recipe = apply_target_defaults(recipe, target)
    graph = model._graph.clone()
    with temporary_cache() as cache:
        dataset = _dataset(data, recipe, model, options, cache.folder)
        first = next(iter(dataset.take([0]).batches(1)))
        bind_shapes(graph, {name: first[name].shape for name in model.inputs})
        with recipe.locate_errors():
            bits = resolve_bits(recipe.bits, graph, target)
        context = Context(
            model=graph,
            name=model.name,
            sha256=model.sha256,
            target=target,
            bits=bits,
            inputs=model.inputs,
            calibration=dataset,
            cache=cache,
            seed=options.get("seed", 0),
            threads=options.get("threads"),
            trust_code=options.get("trust_code", False),
        )
        notes = rewrite(recipe, context)
        steps = quantize_graph(recipe, context)
        stages = [note for stage in cache.done for note in stage.notes if stage.name in PTQ_STEPS]
        plan = freeze(graph, steps.plan)
    return Plan(model, plan, target, (*notes, *stages, *plan.log), graph)


def _check_options(options: Mapping[str, Any]) -> None:
    valid = QuantizeOptions.__annotations__
    for name in options:
        if name not in valid:
            raise RecipeError(
                f"qtool.quantize: unknown option {name}{suggest(name, valid)}; known: "
                f"{', '.join(valid)}"
            )


def _dataset(
    data: Any, recipe: Recipe, model: Model, options: QuantizeOptions, folder: Path
) -> Dataset:
    """Return the calibration samples; batches that can be read once are written to ``folder``."""
    if isinstance(data, Mapping):
        trust_code = options.get("trust_code", False)
        return open_dataset(recipe.calibrate, model.inputs, trust_code=trust_code)
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataError(
            f"qtool.quantize: found a {type(data).__name__} as the data, expected a mapping as "
            'under `calibrate` in a recipe, such as {"images": "train"}, a Dataset, or batches'
        )
    try:
        return spool_batches(_checked_batches(data, model), folder)
    except ValueError as error:
        raise DataError("qtool.quantize: the data has no batch; give at least one") from error


def _checked_batches(data: Iterable[Any], model: Model) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches by input name; all samples must have one shape."""
    first: dict[str, np.ndarray] = {}
    for k, batch in enumerate((_named(each, model.inputs) for each in data), 1):
        first = first or batch
        for name, spec in model.inputs.items():
            shapes = {"batch 1": first[name].shape[1:], f"batch {k}": batch[name].shape[1:]}
            check_sample_shapes(spec, shapes.items(), "qtool.quantize")
        yield batch


def _recipe(model: Model, data: Any, options: QuantizeOptions) -> Recipe:
    """Return the keywords as a recipe, so that they are checked as one."""
    section = data if isinstance(data, Mapping) else {"arrays": "in memory"}
    words: dict[str, Any] = {
        "model": str(model.path),
        "target": options.get("target", "onnxruntime-cpu"),
        "calibrate": {"method": options.get("method", "mse"), **section},
    }
    bits, rewrites = options.get("bits"), options.get("rewrites")
    if bits is not None:
        words["bits"] = dict(bits) if isinstance(bits, Mapping) else bits
    if rewrites is not None:
        words["rewrite"] = list(rewrites)
    if "ptq" in options:
        words["ptq"] = list(options["ptq"])
    return recipe_from_keywords(
        words, "qtool.quantize", Path.cwd(), files=isinstance(data, Mapping)
    )


def _named(batch: Any, inputs: Mapping[str, InputSpec]) -> dict[str, np.ndarray]:
    """Return one batch as arrays by input name, checked against the inputs."""
    if not isinstance(batch, Mapping):
        values = batch if isinstance(batch, list | tuple) else (batch,)
        batch = dict(zip(inputs, values, strict=False))
    missing = [name for name in inputs if name not in batch]
    if missing:
        raise DataError(
            f"qtool.quantize: a batch has nothing for the input {missing[0]}; expected "
            + ", ".join(spec.describe() for spec in inputs.values())
        )
    return {name: _array(batch[name], spec) for name, spec in inputs.items()}


def _array(value: Any, spec: InputSpec) -> np.ndarray:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    rows = spec.batch is None or spec.batch == (len(array) if array.ndim else 0)
    if not array.ndim or not spec.fits(array.shape[1:]) or not rows or not array.size:
        raise DataError(
            f"qtool.quantize: a batch has {array.dtype} {list(array.shape)} for the input "
            f"{spec.describe()}; give batches of that shape"
        )
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise DataError(
            f"qtool.quantize: a batch has {array.dtype} for the input {spec.describe()}; "
            f"convert it to {spec.dtype}"
        )
    return array.astype(spec.dtype, copy=False)


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
    save_model(emit_model(plan._graph, plan.quantization, plan.target, form)[0], target)
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
