"""Before anything is quantized: the model, its target, the data, the bits asked for."""

from dataclasses import dataclass, replace

from qtool.data import (
    DataSection,
    Dataset,
    InputSpec,
    check_sample_shapes,
    open_dataset,
    split,
)
from qtool.errors import RecipeError, suggest
from qtool.loading import Loaded, bind_shapes
from qtool.pipeline.input_checks import _check_labels, _check_metric, check_first_output, disjoint
from qtool.pipeline.load_model import _load, input_specs
from qtool.progress import Progress
from qtool.quant.bit_widths import Bits
from qtool.recipe.layer_bits import resolve_bits
from qtool.recipe.model import Recipe
from qtool.rewrites import REWRITES
from qtool.steps.stage_cache import Record, Stages
from qtool.targets.loader import load_target
from qtool.targets.target import Target

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
            check_sample_shapes(spec, seen.items(), "calibrate and evaluate")
        bind_shapes(loaded.model, {name: first[name].shape for name in inputs})
        _check_labels(recipe.evaluate, judged, loaded.model)
        with recipe.locate_errors():
            bits = resolve_bits(recipe.bits, loaded.model, target)
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
