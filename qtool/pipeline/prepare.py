"""Before anything is quantized: the model, its target, the data, the bits asked for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qtool.data import (
    DataSection,
    Dataset,
    InputSpec,
    drop_overlap,
    open_dataset,
    settle_sizes,
    split,
)
from qtool.errors import ModelError, RecipeError, UnsupportedError, suggest
from qtool.graph.queries import dims
from qtool.graph.save import save_model
from qtool.loading import Loaded, bind_shapes, load_model, load_requantized
from qtool.loading.float16 import was_bfloat16
from qtool.loading.input_shapes import declare
from qtool.metrics.classification import refuse_outside
from qtool.metrics.registry import find_metric
from qtool.pipeline.stage_cache import Record, Stages
from qtool.pipeline.stages import resolve_bits
from qtool.protocols import Progress
from qtool.quant.bit_widths import Bits
from qtool.recipe.model import Evaluate, Recipe
from qtool.recipe.network import OnnxModel, TorchModel, as_torch, carries_code
from qtool.rewrites import REWRITES
from qtool.targets.target import Target, load_target

# Share of evaluation samples that may also be calibration samples before it is an error.
MOST_OVERLAP = 0.01

# Metrics whose labels are class numbers, one for each sample.
CLASS_METRICS = ("top1", "top5", "accuracy", "f1")

# Samples held out of calibration when there is no evaluation set.
HELD_OUT = 64


@dataclass(frozen=True)
class Prepared:
    """The model and the data, before anything is quantized.

    Attributes:
        loaded: as read; its graph is rewritten in place.
        target: what the runtime executes.
        inputs: of the model.
        calibration: samples that ranges come from.
        judged: samples both files are judged on; disjoint from calibration.
        section: where ``judged`` comes from, and ``indices`` which of its samples they are.
        bits: what is asked for, with the names of nodes that stay float.
        trust_code: whether the recipe may run code of its own.
    """

    loaded: Loaded
    target: Target
    inputs: dict[str, InputSpec]
    calibration: Dataset
    judged: Dataset
    section: DataSection
    indices: tuple[int, ...]
    bits: Bits
    trust_code: bool

    @property
    def fixed_batch(self) -> int | None:
        """The batch size the model insists on, or None."""
        return next((s.batch for s in self.inputs.values() if s.batch is not None), None)


def prepare(
    recipe: Recipe,
    stages: Stages,
    seed: int,
    progress: Progress,
    trust_code: bool = False,
    requantize: bool = False,
) -> Prepared:
    """Read the model and open the data.

    Args:
        recipe: what to do, paths absolute.
        stages: where the stage is recorded.
        seed: for the samples that are held out.
        progress: told about the stage.
        trust_code: whether the recipe may run code of its own.
        requantize: whether a quantized ONNX file is turned back to floats first.

    Raises:
        QtoolError: the model, the data or a layer pattern does not fit; the samples have several
            sizes where the model leaves one open.
    """
    with stages.stage("load") as record:
        progress("load", 0, 1)
        target = load_target(recipe.target)
        for name in target.rewrites:
            if name not in REWRITES:
                raise RecipeError(
                    f'target {recipe.target}: rewrites: "{name}" is not a rewrite'
                    f"{suggest(name, REWRITES)}"
                )
        loaded = _load(recipe, target, stages, trust_code, requantize)
        record.notes += loaded.notes
        inputs = input_specs(loaded.model, loaded.shown)
        check_first_output(loaded.model, loaded.shown)
        section = recipe.calibrate
        calibration = open_dataset(section, inputs, trust_code=trust_code)
        record.notes += [f"calibrate: {note}" for note in calibration.notes]
        calibration, judged, judged_section, indices = _judged(
            recipe, calibration, inputs, seed, trust_code, record
        )
        first = next(iter(calibration.take([0]).batches(1)))
        other = next(iter(judged.take([0]).batches(1)))
        for name, spec in inputs.items():
            seen = {"calibrate": first[name].shape[1:], "evaluate": other[name].shape[1:]}
            settle_sizes(spec, seen.items(), "calibrate and evaluate")
        bind_shapes(loaded.model, {name: first[name].shape for name in inputs})
        _check_labels(recipe.evaluate, judged, loaded.model)
        bits = resolve_bits(recipe.bits, loaded.model, target, recipe.error)
        bits = replace(bits, code_outputs=recipe.output.io == "quantized")
        progress("load", 1, 1)
    return Prepared(
        loaded, target, inputs, calibration, judged, judged_section, indices, bits, trust_code
    )


def _judged(
    recipe: Recipe,
    calibration: Dataset,
    inputs: dict[str, InputSpec],
    seed: int,
    trust_code: bool,
    record: Record,
) -> tuple[Dataset, Dataset, DataSection, tuple[int, ...]]:
    """Calibration, the samples both files are judged on, their section and positions in it."""
    section: DataSection = recipe.calibrate
    if recipe.evaluate is None:
        rest, judged = split(calibration, max(1, min(HELD_OUT, calibration.count // 8)), seed)
        place = {position: k for k, position in enumerate(calibration.positions)}
        indices = tuple(place[p] for p in judged.positions)
        record.notes.append(f"no evaluate section: {judged.count} calibration samples held out")
        return rest, judged, section, indices
    own = with_preprocess(recipe.evaluate, section)
    judged = open_dataset(own, inputs, trust_code=trust_code)
    _check_metric(recipe.evaluate, judged, recipe, trust_code)
    record.notes += [f"evaluate: {note}" for note in judged.notes]
    rest = disjoint(recipe, recipe.calibrate, calibration, judged, record, "calibration")
    return rest, judged, own, tuple(range(judged.count))


def with_preprocess(section: DataSection, calibrate: DataSection) -> DataSection:
    """The section; images without a ``preprocess`` of their own take that of ``calibrate``."""
    shared = calibrate.preprocess
    if section.preprocess is not None or section.images is None or shared is None:
        return section
    return section.model_copy(update={"preprocess": shared})


def _check_metric(evaluate: Evaluate, judged: Dataset, recipe: Recipe, trust_code: bool) -> None:
    """Refuse a metric that cannot be computed before minutes of work, not after.

    Raises:
        QtoolError: it needs labels and there are none, or its code is not there or not trusted.
    """
    if judged.labels is None and recipe.gates.max_drop is not None and evaluate.metric is None:
        raise recipe.error(
            ("gates", "max_drop"),
            f"the gate needs labels, but {evaluate.where} has none; give labels, or drop the gate",
        )
    if evaluate.metric is None:
        return
    metric = find_metric(evaluate.metric, evaluate.code, trust_code)
    if judged.labels is None and metric.needs_labels:
        raise recipe.error(
            ("evaluate", "metric"),
            f"{evaluate.metric} needs labels, but {evaluate.where} has none; give labels, or use "
            "cosine or sqnr, which compare with the float model",
        )


def _check_labels(evaluate: Evaluate | None, judged: Dataset, model: ir.Model) -> None:
    """Refuse class numbers outside the model's classes before minutes of work, not after.

    Raises:
        DataError: there are such labels.
    """
    labels, shape = judged.labels, dims(model.graph.outputs[0])
    if evaluate is None or labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return
    if evaluate.metric is not None and evaluate.metric not in CLASS_METRICS:
        return
    if shape is not None and len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1:
        refuse_outside(labels, shape[1])


def _load(
    recipe: Recipe, target: Target, stages: Stages, trust_code: bool, requantize: bool
) -> Loaded:
    """The model of the recipe; a torch network is exported into the stages' folder first."""
    if carries_code(recipe.model) and not trust_code:
        name = as_torch(recipe.model).torch
        raise recipe.error(
            ("model",),
            f"loading {name} runs the code it holds; read it first, then add --trust-code",
        )
    return load_any(
        recipe.model,
        lambda parts: stages.place("float", parts, ".onnx"),
        recipe.output.opset or target.opset,
        stages.fresh,
        requantize,
    )


def load_any(
    model: Path | OnnxModel | TorchModel,
    place: Callable[[tuple[str, ...]], Path],
    opset: int,
    fresh: bool = False,
    requantize: bool = False,
) -> Loaded:
    """Load an ONNX file, or a torch network, whose code is trusted, through an ONNX file.

    Args:
        model: as recipes name it, paths absolute.
        place: from what an export depends on to the file that keeps it.
        opset: the opset wanted.
        fresh: export again even where the file is there.
        requantize: turn an ONNX file that is quantized back to floats first.

    Raises:
        RecipeError: ``requantize`` and the model is a torch network.
    """

    def read(path: Path) -> Loaded:
        if requantize:
            return load_requantized(path, place, opset)
        return _runnable(load_model(path, opset), place)

    if isinstance(model, Path) and not carries_code(model):
        return read(model)
    if isinstance(model, OnnxModel):
        loaded = read(model.onnx)
        if not model.input:
            return loaded
        note = declare(loaded.model, model.input, model.onnx)
        return replace(loaded, notes=(*loaded.notes, note))
    torch = as_torch(model)
    if requantize:
        raise RecipeError(
            f"requantize: found the torch network {torch.torch}, expected an ONNX file; leave the "
            "option out"
        )
    from qtool.loading.pytorch.loader import TensorInput, TorchSource, load_torch

    inputs = tuple(TensorInput(n, given.shape, given.dtype) for n, given in torch.input.items())
    return load_torch(
        TorchSource(torch.torch, torch.weights, inputs, torch.code), place, opset, fresh=fresh
    )


def _runnable(loaded: Loaded, place: Callable[[tuple[str, ...]], Path]) -> Loaded:
    """The model with a file that ONNX Runtime can run: its float32 form, where it is bfloat16."""
    if not was_bfloat16(loaded.model):
        return loaded
    path = place((loaded.sha256, "float32"))
    save_model(loaded.model, path)
    note = "bfloat16: the float model is its float32 form, since ONNX Runtime cannot run bfloat16"
    return replace(loaded, path=path, name=loaded.shown, notes=(*loaded.notes, note))


def input_specs(model: ir.Model, name: str) -> dict[str, InputSpec]:
    """The model's inputs as data must fit them.

    Raises:
        ModelError: an input's shape is not known; the recipe can say it.
        UnsupportedError: there is no input, or one that no batch of numbers can feed.
    """
    if not model.graph.inputs:
        raise UnsupportedError(
            f"model {name}: it has no inputs, so no data can calibrate it; export it with the "
            "input that its result depends on"
        )
    specs = {}
    for value in model.graph.inputs:
        if isinstance(value.type, ir.SequenceType) or value.dtype in (None, ir.DataType.STRING):
            found = "text" if value.dtype == ir.DataType.STRING else "no tensor"
            raise UnsupportedError(
                f'model {name}: the input "{value.name}" is {found}, expected numbers; export the '
                "model without what turns it into tensors"
            )
        shape = dims(value)
        if shape is None:
            raise ModelError(
                f'model {name}: the input "{value.name}" has no known shape; write its sizes into '
                "the recipe, N for the batch and any name for what each batch may choose: "
                f"model: {{onnx: {name}, input: {{{value.name}: [N, 3, 224, 224]}}}}"
            )
        if not shape or 0 in shape:
            found = "one number without a batch axis" if not shape else f"empty: {list(shape)}"
            raise UnsupportedError(
                f'model {name}: the input "{value.name}" is {found}; expected a batch of samples: '
                "make it a constant, or export the model with a batch axis there"
            )
        specs[value.name or ""] = InputSpec(value.name or "", shape, str(value.dtype.numpy()))
    return specs


def check_first_output(model: ir.Model, name: str) -> None:
    """Refuse a first output by which two files cannot be compared sample by sample.

    Raises:
        UnsupportedError: it is not computed, no tensor of numbers, or a single number.
    """
    value = model.graph.outputs[0]
    if value.producer() is None:
        found = "an input" if value.is_graph_input() else "a constant"
    elif isinstance(value.type, ir.SequenceType | ir.OptionalType):
        found = "no tensor"
    elif value.dtype == ir.DataType.STRING:
        found = "text"
    elif dims(value) == ():
        found = "one number for the whole batch"
    else:
        return
    raise UnsupportedError(
        f'model {name}: the first output, "{value.name}", is {found}; it is what both files are '
        "judged by: put an output that has numbers for every sample first"
    )


def disjoint(
    recipe: Recipe,
    section: DataSection,
    dataset: Dataset,
    judged: Dataset,
    record: Record,
    what: str,
) -> Dataset:
    """The samples of a section without those that evaluation has too.

    Raises:
        RecipeError: they share more than MOST_OVERLAP, or nothing would be left.
    """
    own = recipe.evaluate
    if section.allow_overlap or (own is not None and own.allow_overlap):
        return dataset
    rest, dropped = drop_overlap(dataset, judged)
    if len(dropped) > MOST_OVERLAP * judged.count or (dropped and rest.count == 0):
        raise recipe.error(
            ("evaluate",),
            f"{len(dropped)} of {judged.count} evaluation samples are {what} samples too "
            f"(first: {dropped[0]}), expected at most {MOST_OVERLAP:.0%}; "
            "give disjoint folders, use `take` to part one folder, or set allow_overlap: true",
        )
    if dropped:
        record.notes.append(
            f"{len(dropped)} {what} samples are evaluation samples too and were dropped: "
            + ", ".join(dropped[:5])
            + (" ..." if len(dropped) > 5 else "")
        )
    return rest
