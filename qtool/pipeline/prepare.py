"""Read the model and open the data of a run, before anything is quantized."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from qtool.calibration.synthetic import with_input_moments
from qtool.data import (
    READERS,
    Batch,
    DataSection,
    Dataset,
    InputSpec,
    check_sample_shapes,
    open_dataset,
    split,
)
from qtool.data.inputs import constant_arrays, fixed_batch
from qtool.errors import RecipeError, suggest
from qtool.loading import Loaded, bind_shapes
from qtool.loading.branches import choose_branches
from qtool.loading.size_checks import check_sizes
from qtool.metrics.registry import DEFAULT_METRIC
from qtool.pipeline.checks.gate_needs import check_gate_needs
from qtool.pipeline.checks.near_duplicates import near_duplicate_notes
from qtool.pipeline.checks.preprocessing import check_preprocessing
from qtool.pipeline.context import EvaluationData, Prepared, RunOptions
from qtool.pipeline.input_checks import (
    check_labels,
    check_metric,
    check_thumbnails,
    disjoint,
    probe_batch,
    usable,
)
from qtool.pipeline.inputs.specs import recipe_inputs
from qtool.pipeline.inputs.streams import StreamRecorder
from qtool.pipeline.latency.needs import check_batches
from qtool.pipeline.load_model import load_from_recipe
from qtool.pipeline.pruning.checks import check_pruned_layers
from qtool.pipeline.stages import ptq_steps
from qtool.recipe.model import Recipe
from qtool.recipe.sections.layer_bits import resolve_bits
from qtool.recipe.target_defaults import add_default_steps, apply_target_defaults
from qtool.rewrites import REWRITES, SAMPLE_REWRITES
from qtool.steps.context import Context
from qtool.steps.guard import check_needs
from qtool.steps.stage_cache import StageCache, StageRecord
from qtool.targets.loader import load_target
from qtool.targets.target import Target

# Calibration samples that are held out for evaluation where the recipe has no `evaluate`.
HOLDOUT = 64


NO_DATA = (
    "WARNING: no data was read: ranges come from BatchNorm statistics and noise; accuracy may fall "
    "well below that of a run with samples, and without `evaluate` it is unknown"
)


Adapt = Callable[[Recipe, ir.Model, Mapping[str, InputSpec]], Recipe]
"""Changes a recipe where the model and its inputs are known, before the data is opened."""


def prepare(
    recipe: Recipe,
    cache: StageCache,
    options: RunOptions,
    adapt: Adapt = lambda recipe, model, inputs: recipe,
) -> Prepared:
    """Read the model and open the data.

    Args:
        recipe: as it was read, paths absolute.
        cache: records the stage.
        options: of the run.
        adapt: changes the recipe before the data is opened.

    Raises:
        QtoolError: the model, the data or a layer pattern does not fit; the samples have several
            sizes where the model leaves one open.
    """
    target = load_target(recipe.target)
    recipe = apply_target_defaults(recipe, target)
    with cache.stage("load") as record:
        options.progress("load", 0, 1)
        _check_rewrites(recipe, target)
        loaded = load_from_recipe(recipe, target, cache, options)
        inputs, notes = recipe_inputs(recipe, loaded)
        notes += choose_branches(loaded.model, constant_arrays(inputs, 1))
        record.notes += [*loaded.notes, *recipe.notes, *notes]
        recipe = adapt(recipe, loaded.model, inputs)
        recipe, calibration, evaluation = _open_data(recipe, loaded, inputs, cache, options, record)
        first = _check_same_shapes(inputs, calibration, evaluation.dataset)
        inputs, mixing = probe_batch(loaded.model, inputs, calibration, loaded.shown)
        record.notes += mixing
        _bind_sizes(loaded, inputs, first)
        record.notes += check_labels(recipe.evaluate, evaluation.dataset, loaded.model)
        with recipe.locate_errors():
            bits = resolve_bits(recipe.bits, loaded.model, target)
        samples = 0 if calibration.synthetic else calibration.count
        recipe = add_default_steps(recipe, bits.scale, samples)
        _check_steps(recipe, calibration)
        check_pruned_layers(recipe, loaded.model, _available(calibration))
        check_batches(recipe, fixed_batch(inputs.values()))
        options.progress("load", 1, 1)
    context = Context(
        model=loaded.model,
        name=loaded.shown,
        sha256=loaded.sha256,
        target=target,
        bits=replace(bits, code_outputs=recipe.output.io == "quantized"),
        inputs=inputs,
        calibration=calibration,
        cache=cache,
        placement=recipe.placement,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        trust_code=options.trust_code,
        progress=options.progress,
    )
    prepared = Prepared(recipe, options, loaded, evaluation, context)
    return replace(prepared, preprocessing=check_preprocessing(prepared))


def _open_data(
    recipe: Recipe,
    loaded: Loaded,
    inputs: dict[str, InputSpec],
    cache: StageCache,
    options: RunOptions,
    record: StageRecord,
) -> tuple[Recipe, Dataset, EvaluationData]:
    """Return the recipe with what was guessed, calibration and evaluation samples, disjoint."""
    recipe, moments = _with_input_moments(recipe, loaded.model, inputs)
    recipe, calibration = _open_calibration(recipe, inputs, options)
    record.notes += [f"calibrate: {note}" for note in (*moments, *calibration.notes)]
    calibration, evaluation = _parts(recipe, calibration, inputs, options, record)
    recipe = with_guesses(recipe, "evaluate", evaluation.dataset)
    streams = StreamRecorder(loaded.model, inputs, cache, (loaded.sha256,), options.progress)
    return recipe, *_with_states(streams, calibration, evaluation)


def _with_states(
    streams: StreamRecorder, calibration: Dataset, evaluation: EvaluationData
) -> tuple[Dataset, EvaluationData]:
    """Return the samples with recorded states, where they are calls of streams."""
    dataset, folder = streams.with_states(evaluation.dataset)
    evaluation = replace(evaluation, dataset=dataset, states=folder)
    return streams.with_states(calibration)[0], evaluation


def _check_same_shapes(
    inputs: Mapping[str, InputSpec], calibration: Dataset, evaluation: Dataset
) -> Batch:
    """Refuse sections of several sizes where the model leaves one open; return the first sample."""
    sections = {"calibrate": calibration, "evaluate": evaluation}
    batches = {key: next(iter(data.take([0]).batches(1))) for key, data in sections.items()}
    for name, spec in inputs.items():
        shapes = {section: spec.sample_of(batch[name].shape) for section, batch in batches.items()}
        check_sample_shapes(spec, shapes.items(), " and ".join(batches))
    return batches["calibrate"]


def _bind_sizes(loaded: Loaded, inputs: Mapping[str, InputSpec], sample: Batch) -> None:
    """Set the open sizes of the graph to those of a sample; refuse what no memory holds."""
    axes = {name: spec.batch_axis for name, spec in inputs.items()}
    bind_shapes(loaded.model, {name: sample[name].shape for name in inputs}, axes)
    check_sizes(loaded.model, loaded.shown)


def _check_rewrites(recipe: Recipe, target: Target) -> None:
    keys: Mapping[str, tuple[tuple[str, ...], Mapping[str, object]]] = {
        "rewrites": (target.rewrites, REWRITES),
        "sample_rewrites": (target.sample_rewrites, SAMPLE_REWRITES),
    }
    for key, (names, table) in keys.items():
        for name in names:
            if name not in table:
                raise RecipeError(
                    f'target {recipe.target}: {key}: "{name}" is not a rewrite'
                    f"{suggest(name, table)}"
                )


def _check_steps(recipe: Recipe, calibration: Dataset) -> None:
    check_needs(ptq_steps(recipe), _available(calibration))


def _available(calibration: Dataset) -> frozenset[str]:
    """Return the requirements of steps that the samples meet."""
    available = {"bias", *(("labels",) if calibration.labels is not None else ())}
    available |= set() if calibration.synthetic else {"samples"}
    return frozenset(available)


def _with_input_moments(
    recipe: Recipe, model: ir.Model, inputs: dict[str, InputSpec]
) -> tuple[Recipe, tuple[str, ...]]:
    """Return the recipe with mean and deviation of synthetic samples, and notes for the report."""
    options = recipe.calibrate.synthetic
    if options is None or options.ranges == "none":
        return recipe, ()
    noise = open_dataset(recipe.calibrate, inputs)
    options, note = with_input_moments(options, model, noise)
    section = recipe.calibrate.model_copy(update={"synthetic": options})
    return recipe.model_copy(update={"calibrate": section}), (NO_DATA, note)


def _open_calibration(
    recipe: Recipe, inputs: dict[str, InputSpec], options: RunOptions
) -> tuple[Recipe, Dataset]:
    """Return the recipe with what was guessed, and the calibration samples.

    Where nothing is calibrated, that is one sample, which shows their sizes.
    """
    section, synthetic = with_shared(recipe.calibrate, recipe), recipe.calibrate.synthetic
    if synthetic is None or synthetic.ranges != "none" or recipe.evaluate is None:
        dataset = open_dataset(
            section, inputs, trust_code=options.trust_code, progress=options.progress
        )
        return with_guesses(recipe, "calibrate", dataset), dataset
    evaluate = with_shared(recipe.evaluate, recipe)
    shown = open_dataset(evaluate, inputs, trust_code=options.trust_code).take([0])
    return recipe, replace(shown, labels=None, classes=None, notes=(), synthetic=True)


def _parts(
    recipe: Recipe,
    calibration: Dataset,
    inputs: dict[str, InputSpec],
    options: RunOptions,
    record: StageRecord,
) -> tuple[Dataset, EvaluationData]:
    """Return calibration and evaluation samples, disjoint.

    Without an ``evaluate`` section some of the calibration samples are held out.
    """
    positions = calibration.positions
    calibration, warnings = usable(calibration, "calibration")
    record.notes += warnings
    if recipe.evaluate is None:
        count = max(1, min(HOLDOUT, calibration.count // 8))
        rest, evaluation = split(calibration, count, options.seed)
        index = {position: k for k, position in enumerate(positions)}
        indices = tuple(index[position] for position in evaluation.positions)
        record.notes.append(f"no evaluate section: {evaluation.count} calibration samples held out")
        section = with_shared(recipe.calibrate, recipe)
        return rest, EvaluationData(evaluation, section, indices)
    section = with_shared(recipe.evaluate, recipe)
    evaluation = open_dataset(
        section, inputs, trust_code=options.trust_code, progress=options.progress
    )
    check_metric(recipe, evaluation, options.trust_code)
    check_gate_needs(recipe, evaluation, options)
    check_thumbnails(recipe, evaluation)
    record.notes += [f"evaluate: {note}" for note in evaluation.notes]
    if calibration.synthetic:
        return calibration, EvaluationData(evaluation, section, tuple(range(evaluation.count)))
    rest, notes = disjoint(recipe, recipe.calibrate, calibration, evaluation, "calibration")
    record.notes += notes
    if not (recipe.calibrate.allow_overlap or recipe.evaluate.allow_overlap):
        record.notes += near_duplicate_notes(rest, evaluation)
    return rest, EvaluationData(evaluation, section, tuple(range(evaluation.count)))


def with_guesses(recipe: Recipe, key: str, dataset: Dataset) -> Recipe:
    """Return the recipe with what opening a data section filled in, so that it says everything.

    Args:
        recipe: that the section belongs to.
        key: of the section; one that is absent stays so.
        dataset: the samples of the section.
    """
    section: DataSection | None = getattr(recipe, key)
    if section is None or READERS[section.reader].synthetic:
        return recipe
    guesses = dict(dataset.guesses)
    if key == "evaluate" and recipe.evaluate is not None and dataset.labels is not None:
        guesses["metric"] = recipe.evaluate.metric or DEFAULT_METRIC
    return recipe.model_copy(update={key: section.model_copy(update=guesses)})


def with_shared(section: DataSection, recipe: Recipe) -> DataSection:
    """Return the section with keys of others: ``preprocess`` of calibrate, ``classes`` of any.

    Args:
        section: a data section; keys that it has itself, or its reader does not use, are not taken.
        recipe: that it belongs to.
    """
    sections = (recipe.evaluate, recipe.calibrate, recipe.qat)
    shared = {
        "preprocess": recipe.calibrate.preprocess,
        "classes": next((s.classes for s in sections if s is not None and s.classes), None),
    }
    uses = READERS[section.reader].uses
    update = {k: v for k, v in shared.items() if k in uses and getattr(section, k) is None}
    if section.labels is not None and Path(section.labels).is_dir():
        update.pop("classes", None)  # label maps hold numbers
    return section.model_copy(update=update)
