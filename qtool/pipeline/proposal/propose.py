"""Propose a recipe: find a way to read the data that the model understands."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from qtool.data import InputSpec, Preprocess
from qtool.data.default_preprocess import guess
from qtool.data.readers.decode import decode
from qtool.data.readers.folders import list_samples
from qtool.data.readers.images import IMAGES
from qtool.data.usual_preprocess import as_yaml, in_recipe, usual_preprocess, usual_resizes
from qtool.errors import DataError
from qtool.graph.queries import dims
from qtool.pipeline.context import RunOptions
from qtool.pipeline.inputs.specs import input_specs
from qtool.pipeline.load_model import load_trusted
from qtool.pipeline.proposal.trial import Trial, difference, run_trial
from qtool.progress import Progress
from qtool.recipe.data_folder import Source, data_sources
from qtool.runtime.ort_session import OrtSession
from qtool.steps.stage_cache import temporary_cache
from qtool.targets.loader import load_target

# Samples of a trial, and of those that compare ways of resizing, which differ by less.
SAMPLES, MORE_SAMPLES = 64, 192
# Calibration samples of the recipe.
COUNT = 512
# Paired differences in standard errors from which a choice is called sure, and likely.
SURE, LIKELY = 4.0, 2.0
# A candidate that no named setting is; it has to be better by more than noise.
OWN = "the images' own mean and deviation"


@dataclass(frozen=True)
class Proposal:
    """A recipe and its reasons.

    Attributes:
        sections: of the recipe, paths absolute.
        comments: key path -> what was guessed and how sure it is.
        unknown: what could not be found out, a sentence each.
        runs: whether the float model ran on the data as the recipe reads it.
    """

    sections: Mapping[str, Any]
    comments: Mapping[tuple[str, ...], str]
    unknown: tuple[str, ...]
    runs: bool


def propose(model: Path, data: Path, target: str, options: RunOptions | None = None) -> Proposal:
    """Look at a model and a folder of data and propose a recipe.

    Only calibration samples are tried: what evaluates the result chooses nothing.

    Args:
        model: an ONNX file, or a .pt2 or .pt file of torch.
        data: a file or a folder.
        target: name of a target, or the path of one.
        options: trust_code and progress are used; None: the defaults.

    Raises:
        QtoolError: the model cannot be loaded, or the path holds no data of any reader.
    """
    options = options or RunOptions()
    sources = data_sources(data)
    with temporary_cache() as cache:
        loaded = load_trusted(model, load_target(target).opset, cache, options)
        inputs, _ = input_specs(loaded.model, loaded.shown)
        with OrtSession(loaded.model, level="basic") as session:
            readings = []
            for number, source in enumerate(sources, 1):
                readings.append(_read(source, _Runner(session, inputs, options.progress)))
                options.progress("try the data", number, len(sources))
    reading = max(readings, key=lambda reading: reading.rank)
    return _proposal(model, target, loaded.model, inputs, reading)


@dataclass(frozen=True)
class _Runner:
    """The float model, ready to be tried."""

    session: OrtSession
    inputs: Mapping[str, InputSpec]
    progress: Progress

    def trial(self, source: Source, settings: Preprocess | None, count: int = SAMPLES) -> Trial:
        """Run the model on calibration samples of a source."""
        section, _ = source.sections(None)
        if settings is not None:
            section["preprocess"] = settings.model_dump(mode="json", exclude_defaults=True)
        return run_trial(self.session, self.inputs, section, count)


@dataclass(frozen=True)
class _Reading:
    """A source, the preprocessing chosen for it, and what the model made of them."""

    source: Source
    trial: Trial
    settings: Preprocess | None = None
    reason: str = ""

    @property
    def rank(self) -> tuple[int, float]:
        """Sort key: labelled and right first, then labelled, then readable at all."""
        if self.trial.error:
            return 0, 0.0
        if self.trial.losses is None:
            return 1, 0.0
        return 2 + self.trial.beats_chance, -float(self.trial.losses.mean())


def _read(source: Source, runner: _Runner) -> _Reading:
    """Return the best way to read a source."""
    if source.reader != "images":
        return _Reading(source, runner.trial(source, None))
    try:
        choices = _normalisations(source, runner)
    except DataError as error:
        return _Reading(source, Trial({}, error=str(error)))
    scored = [choice for choice in choices if choice.trial.losses is not None]
    if len(scored) < 2:
        return replace(choices[0], reason="a guess: there are no class labels to try it on")
    best, other = sorted(scored, key=lambda c: -c.rank[1])[:2]
    if best.reason == OWN and difference(best.trial, other.trial) <= LIKELY:
        best, other = other, best
    if best.trial.beats_chance and best.settings is not None:
        return _resized(replace(best, reason=_compared(best, other)), runner)
    return replace(
        choices[0],
        reason=f"a guess: none is better than chance (best: {best.reason}, "
        f"{best.trial.accuracy:.1f} % of {best.trial.count} samples)",
    )


def _normalisations(source: Source, runner: _Runner) -> list[_Reading]:
    """Try the usual normalisations.

    Raises:
        DataError: the model has no sole image input, or the folder cannot be read.
    """
    if len(runner.inputs) != 1:
        raise DataError(f"the model has {len(runner.inputs)} inputs; images feed one")
    root = Path(source.calibrate)
    names = list_samples(root, IMAGES, source.labels[0]).names
    paths = [root / name for name in names[:: max(1, len(names) // SAMPLES)]]
    first, _ = guess(next(iter(runner.inputs.values())), paths)
    candidates = [(as_yaml(first), first), *usual_preprocess(first)]
    if first.dtype != "uint8":
        candidates.append((OWN, _standardized(first, paths)))
    readings = []
    for number, (name, settings) in enumerate(candidates, 1):
        readings.append(_Reading(source, runner.trial(source, settings), settings, name))
        runner.progress("try preprocessings", number, len(candidates))
    return readings


def _standardized(settings: Preprocess, paths: Sequence[Path]) -> Preprocess:
    """Return the settings with mean and deviation of the images themselves, channel by channel."""
    pixels = [decode(path, settings).reshape(-1, settings.channels) for path in paths]
    values = np.concatenate(pixels) / 255.0
    mean = [round(float(m), 3) for m in values.mean(0)]
    std = [max(round(float(s), 3), 1e-3) for s in values.std(0)]
    if settings.channels == 1:
        return settings.model_copy(update={"scale": 1 / 255, "mean": mean[0], "std": std[0]})
    return settings.model_copy(update={"scale": 1 / 255, "mean": mean, "std": std, "color": "rgb"})


def _compared(best: _Reading, other: _Reading) -> str:
    """Return how sure the best normalisation is."""
    gap = difference(best.trial, other.trial)
    word = "sure" if gap > SURE else "likely" if gap > LIKELY else "a guess"
    return (
        f"{word}: {best.reason}, {best.trial.accuracy:.1f} % of {best.trial.count} labelled "
        f"samples; next: {other.reason}, {other.trial.accuracy:.1f} %"
    )


def _resized(reading: _Reading, runner: _Runner) -> _Reading:
    """Return the reading with another way of resizing, where that is clearly better."""
    if reading.settings is None or not (ways := list(usual_resizes(reading.settings))):
        return reading
    best = replace(reading, trial=runner.trial(reading.source, reading.settings, MORE_SAMPLES))
    for number, (name, settings) in enumerate(ways, 1):
        runner.progress("try sizes", number, len(ways) + 1)
        trial = runner.trial(reading.source, settings, MORE_SAMPLES)
        if difference(trial, best.trial) > LIKELY:
            best = _Reading(reading.source, trial, settings, f"{reading.reason}; resized: {name}")
    runner.progress("try sizes", len(ways) + 1, len(ways) + 1)
    return best


def _proposal(
    model: Path, target: str, graph: ir.Model, inputs: Mapping[str, InputSpec], reading: _Reading
) -> Proposal:
    """Return the recipe of a reading."""
    trial, source = reading.trial, reading.source
    calibrate, evaluate = source.sections(COUNT)
    comments = {("model",): _family(graph, inputs), ("calibrate", source.reader): source.reason}
    if source.classes:
        comments["evaluate", "classes"] = "the folders of both parts, which have different ones"
    if reading.settings is not None:
        calibrate["preprocess"] = in_recipe(reading.settings)
        comments["calibrate", "preprocess"] = reading.reason
    sections: dict[str, Any] = {"model": str(model.absolute()), "target": target}
    sections |= {"calibrate": calibrate, "evaluate": evaluate}
    if trial.losses is not None:
        evaluate["metric"] = "top1"
        sections["gates"] = {"max_drop": 1.0}
        comments["gates", "max_drop"] = "percentage points of top-1"
        if reading.settings is None:
            comments["calibrate", source.reader] += (
                f"; {trial.accuracy:.1f} % of {trial.count} labelled calibration samples"
            )
    return Proposal(sections, comments, tuple(_unknown(reading)), not trial.error)


def _unknown(reading: _Reading) -> Iterator[str]:
    """Yield what could not be found out."""
    trial, key = reading.trial, reading.source.reader
    if trial.error:
        yield (
            f"how `{key}` feeds the model: {trial.error}; a function of your own can do what no "
            "reader does (qtool list readers python)"
        )
    elif trial.losses is None and trial.labelled:
        yield (
            "the metric: the labels are no class numbers of the model's first output; set "
            "`evaluate.metric` (qtool list metrics); without it the report has agreement only"
        )
    elif trial.losses is None:
        yield "labels: none were there, so the report has agreement with the float model only"
    elif not trial.beats_chance:
        yield (
            f"the preprocessing or the label order: the float model has {trial.accuracy:.1f} % of "
            f"{trial.count} samples, no better than chance; set `calibrate.preprocess`, or "
            "`evaluate.classes`"
        )


def _family(graph: ir.Model, inputs: Mapping[str, InputSpec]) -> str:
    """Describe the model in a few words."""
    shape = dims(graph.graph.outputs[0]) or ()
    classes = shape[-1] if len(shape) in (2, 3) and isinstance(shape[-1], int) else None
    first = next(iter(inputs.values()))
    states = [spec for spec in inputs.values() if spec.next_state]
    images = len(first.shape) == 4
    kind = "a model"
    if 0 < len(states) < len(inputs):
        fed = ", ".join(f"{spec.name} from {spec.next_state}" for spec in states)
        kind = f"a streaming network, as it seems: the states are fed back ({fed})"
    elif classes and images and len(inputs) == 1:
        each = "" if len(shape) == 2 else " at each step, such as a reader of text"
        kind = f"a classifier of images or spectrograms, {classes} classes{each}"
    elif classes and len(shape) == 2 and first.dtype.startswith("int"):
        kind = f"a classifier of texts, {classes} classes"
    elif len(graph.graph.outputs) > 1 and images:
        kind = f"a network on images with {len(graph.graph.outputs)} outputs"
    listed = ", ".join(spec.describe() for spec in inputs.values())
    return f"{kind}: {listed}"
