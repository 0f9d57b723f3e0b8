"""Open the data of a recipe section: a reader, the model's layout, constants and states."""

from collections.abc import Mapping
from dataclasses import replace

from qtool.data.config import DataSection
from qtool.data.dataset import Dataset
from qtool.data.inputs import InputSpec
from qtool.data.readers import READERS
from qtool.data.source import LABEL, ModelInputs, Opening
from qtool.data.streams import Loop, StreamCalls, initial_state
from qtool.errors import DataError, suggest
from qtool.progress import Progress, silent


def open_dataset(
    section: DataSection,
    inputs: Mapping[str, InputSpec],
    *,
    workers: int | None = None,
    trust_code: bool = False,
    progress: Progress = silent,
) -> Dataset:
    """Open the data that a recipe section names, for the model's inputs.

    With ``loop`` the batches lack the inputs that are fed back, until their states are recorded.

    Args:
        section: the section of the recipe, its paths absolute.
        inputs: the model's inputs by name.
        workers: see :class:`Opening`.
        trust_code: see :class:`Opening`.
        progress: see :class:`Opening`.

    Raises:
        RecipeError: the section names code, which is not trusted.
        DataError: a file is missing or damaged, or the data does not fit the inputs.
    """
    states = _states(section, inputs)
    rest = {name: spec for name, spec in inputs.items() if name not in states}
    opening = Opening(workers, trust_code, progress)
    dataset = READERS[section.reader](section, _fed_by_data(section, inputs), opening)
    if dataset.labels is not None and LABEL in inputs:
        raise DataError(
            f"the model has an input called `{LABEL}`, the name batches keep for the labels; "
            "rename the model's input, or give the data without labels"
        )
    dataset = arranged(dataset, rest)
    if not states:
        return dataset
    if not dataset.starts:
        raise DataError(
            f"{section.where}: `loop` needs streams of calls, and each of these samples is one "
            "call; expected chunks of recordings: set `wav: {hop: ..}`"
        )
    calls = StreamCalls(dataset.source, dataset.starts)
    initial = {name: initial_state(inputs[name]) for name in states}
    loop = Loop(section.loop or {}, initial, calls, dataset.starts)
    return replace(dataset, source=calls, loop=loop)


def arranged(dataset: Dataset, inputs: Mapping[str, InputSpec]) -> Dataset:
    """Return samples as the model reads them, with its constant inputs.

    Args:
        dataset: its source yields samples first.
        inputs: those that the source feeds, and the constant ones.
    """
    if all(spec.batch_axis == 0 and spec.constant is None for spec in inputs.values()):
        return dataset
    return replace(dataset, source=ModelInputs(dataset.source, inputs))


def fit_batch_axes(
    section: DataSection, inputs: Mapping[str, InputSpec]
) -> tuple[dict[str, InputSpec], tuple[str, ...]]:
    """Return the model's inputs with batch axes by which the data fits, and notes.

    Args:
        section: the section of the recipe, its paths absolute.
        inputs: the model's inputs, with the axes that the model and the recipe suggest.

    Raises:
        DataError: a file is missing or damaged, or holds nothing for an input.
    """
    fed, notes = READERS[section.reader].batch_axes(section, _fed_by_data(section, inputs))
    return {name: fed.get(name, spec) for name, spec in inputs.items()}, notes


def _states(section: DataSection, inputs: Mapping[str, InputSpec]) -> tuple[str, ...]:
    """Return the inputs that outputs are fed back to."""
    states = tuple((section.loop or {}).values())
    for name in states:
        if name not in inputs:
            raise DataError(
                f"loop: feeds the input `{name}`, but the model's inputs are {', '.join(inputs)}"
                f"{suggest(name, inputs)}"
            )
    return states


def _fed_by_data(section: DataSection, inputs: Mapping[str, InputSpec]) -> dict[str, InputSpec]:
    """Return the inputs that the reader feeds."""
    states = _states(section, inputs)
    fed = {n: s for n, s in inputs.items() if s.constant is None and n not in states}
    if not fed:
        raise DataError(
            f"{section.where}: feeds no input of the model, since every one is a constant or a "
            "state; expected at least one that the data feeds"
        )
    return fed
