"""Quantize a loaded network with data: the second function of the Python API."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import onnx_ir as ir

from qtool.api.model import Model
from qtool.data import Dataset, InputSpec, check_sample_shapes, open_dataset
from qtool.data.inputs import fits, samples_in
from qtool.data.opening import arranged
from qtool.data.spool import spool_batches
from qtool.data.streams.recorded_states import samples_first
from qtool.errors import DataError, ModelError, RecipeError, suggest
from qtool.loading import bind_shapes
from qtool.pipeline.input_checks import probe_batch
from qtool.pipeline.inputs.streams import StreamRecorder, check_loop
from qtool.pipeline.stages import quantize as quantize_graph
from qtool.pipeline.stages import rewrite
from qtool.quant.freeze import freeze
from qtool.quant.plan import QuantPlan
from qtool.quant.plan_io import write_plan
from qtool.recipe.loader import recipe_from_keywords
from qtool.recipe.model import Recipe
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.recipe.target_defaults import add_default_steps, apply_target_defaults
from qtool.steps.context import Context
from qtool.steps.stage_cache import StageCache, temporary_cache
from qtool.targets.loader import load_target
from qtool.targets.target import Target


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
        dataset = _dataset(data, recipe, model, options, cache)
        inputs, mixing = probe_batch(model._graph, model.inputs, dataset, model.name)
        first = next(iter(dataset.take([0]).batches(1)))
        axes = {name: spec.batch_axis for name, spec in model.inputs.items()}
        bind_shapes(graph, {name: first[name].shape for name in model.inputs}, axes)
        with recipe.locate_errors():
            bits = resolve_bits(recipe.bits, graph, target)
        recipe = add_default_steps(recipe, bits.scale, dataset.count)
        context = Context(
            model=graph,
            name=model.name,
            sha256=model.sha256,
            target=target,
            bits=bits,
            inputs=inputs,
            calibration=dataset,
            cache=cache,
            placement=recipe.placement,
            seed=options.get("seed", 0),
            threads=options.get("threads"),
            trust_code=options.get("trust_code", False),
        )
        notes = rewrite(recipe, context)
        steps = quantize_graph(recipe, context)
        names = {row.step for row in steps.rows}
        stages = [note for stage in cache.done for note in stage.notes if stage.name in names]
        plan = freeze(graph, steps.plan)
    return Plan(model, plan, target, (*mixing, *notes, *stages, *plan.log), graph)


def _check_options(options: Mapping[str, Any]) -> None:
    valid = QuantizeOptions.__annotations__
    for name in options:
        if name not in valid:
            raise RecipeError(
                f"qtool.quantize: unknown option {name}{suggest(name, valid)}; known: "
                f"{', '.join(valid)}"
            )


def _dataset(
    data: Any, recipe: Recipe, model: Model, options: QuantizeOptions, cache: StageCache
) -> Dataset:
    """Return the calibration samples; batches that can be read once are written to the cache."""
    if isinstance(data, Mapping):
        trust_code = options.get("trust_code", False)
        check_loop(recipe.calibrate, model._graph, model.inputs)
        dataset = open_dataset(recipe.calibrate, model.inputs, trust_code=trust_code)
        return StreamRecorder(model._graph, model.inputs, cache).with_states(dataset)[0]
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataError(
            f"qtool.quantize: found a {type(data).__name__} as the data, expected a mapping as "
            'under `calibrate` in a recipe, such as {"images": "train"}, a Dataset, or batches'
        )
    try:
        rows = spool_batches(_checked_batches(data, model), cache.folder)
        return arranged(rows, model.inputs)
    except ValueError as error:
        raise DataError("qtool.quantize: the data has no batch; give at least one") from error


def _checked_batches(data: Iterable[Any], model: Model) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches by input name, samples first; all samples must have one shape."""
    inputs = {name: spec for name, spec in model.inputs.items() if spec.constant is None}
    first: dict[str, np.ndarray] = {}
    for k, arrays in enumerate((_named(each, inputs) for each in data), 1):
        count = samples_in(arrays, inputs.values())
        batch = {name: samples_first(arrays[name], spec) for name, spec in inputs.items()}
        batch = {n: a if len(a) == count else np.repeat(a, count, 0) for n, a in batch.items()}
        first = first or batch
        for name, spec in inputs.items():
            shapes = {"batch 1": first[name].shape[1:], f"batch {k}": batch[name].shape[1:]}
            check_sample_shapes(spec, shapes.items(), "qtool.quantize")
        yield batch


def _recipe(model: Model, data: Any, options: QuantizeOptions) -> Recipe:
    """Return the keywords as a recipe, so that they are checked as one."""
    section = data if isinstance(data, Mapping) else {"arrays": "in memory"}
    method = options.get("method")
    words: dict[str, Any] = {
        "model": str(model.path),
        "target": options.get("target", "onnxruntime-cpu"),
        "calibrate": {**({"method": method} if method else {}), **section},
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
    if not array.size or not fits(spec.shape, array.shape):
        raise DataError(
            f"qtool.quantize: a batch has {array.dtype} {list(array.shape)} for the input "
            f"{spec.describe()}; give batches of that shape"
        )
    if array.dtype == np.uint8 and np.dtype(spec.dtype).kind == "f":
        raise DataError(
            f"qtool.quantize: a batch has uint8, which looks like pixels, for the input "
            f"{spec.describe()}; scale it as in training, such as (x / 255 - mean) / std, or give "
            f"x.astype({spec.dtype!r}) if the model takes 0 to 255"
        )
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise DataError(
            f"qtool.quantize: a batch has {array.dtype} for the input {spec.describe()}; "
            f"convert it to {spec.dtype}"
        )
    return array.astype(spec.dtype, copy=False)
