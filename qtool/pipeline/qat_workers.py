"""`qtool qat` in several processes: what the first one tells the others, and what they do.

The first process does everything that one process does. The others wait until it has calibrated,
read the same model and data, and train in step; they write and print nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtool.data import Dataset, open_dataset
from qtool.errors import RecipeError
from qtool.pipeline.prepare import Prepared, with_preprocess
from qtool.qat import distributed
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.recipe.qat_section import Qat

if TYPE_CHECKING:
    from qtool.qat.fake_quant_model import QatNetwork
    from qtool.qat.loss import Teacher
    from qtool.qat.settings import Settings


@dataclass(frozen=True)
class Course:
    """What the other processes are told when training begins.

    Attributes:
        plan, settings, keep: as the first process trains with.
        model: digest of its model.
        samples: (name, position) of what it learns from.
    """

    plan: QuantPlan
    settings: "Settings"
    keep: Path
    model: str
    samples: tuple[tuple[str, int], ...]


def tell(plan: QuantPlan, settings: "Settings", keep: Path, model: str, lessons: Dataset) -> None:
    """Let the other processes, if there are any, begin to train; arguments as in Course."""
    if distributed.count() > 1:
        samples = tuple(zip(lessons.names, lessons.positions, strict=True))
        distributed.share(lambda: Course(plan, settings, keep, model, samples))


def help_learn(recipe: Recipe, make: Callable[[], Prepared], seed: int, device: str) -> None:
    """What the other processes do while the first one learns.

    Args:
        recipe: has a ``qat`` section, or the first process refuses it.
        make: reads the model and rewrites its graph.
        seed: of every random choice.
        device: where to train.

    Raises:
        QtoolError: model or data are not here what they are to the first process.
        Lost: the first process ended before training did; it says why.
    """
    course = distributed.share(_told)
    import torch

    from qtool.qat.settings import RunFiles
    from qtool.qat.trainer import train

    torch.manual_seed(seed)
    section, prepared = recipe.qat, make()
    if section is None:
        raise AssertionError("the first process trains without a qat section")
    data = open_section(recipe, section, prepared)
    place = {sample: k for k, sample in enumerate(zip(data.names, data.positions, strict=True))}
    missing = sum(sample not in place for sample in course.samples)
    if missing or prepared.loaded.sha256 != course.model:
        found = f"{missing} samples are missing" if missing else "the model is another one"
        raise RecipeError(
            f"process {distributed.rank()}: {found}; every process must see the same files"
        )
    lessons = data.take([place[sample] for sample in course.samples])
    network, teacher = make_network(section, prepared, course.plan, device)
    # The first process alone judges; nothing is read for that here.
    train(network, teacher, lessons, lessons, course.settings, RunFiles(course.keep))


def _told() -> Course:
    raise AssertionError("the first process tells, the others are told")


def open_section(recipe: Recipe, section: Qat, prepared: Prepared) -> Dataset:
    """All samples of the ``qat`` section."""
    own = with_preprocess(section, recipe.calibrate)
    return open_dataset(own, prepared.inputs, trust_code=prepared.trust_code)


def make_network(
    section: Qat, prepared: Prepared, plan: QuantPlan, device: str
) -> tuple["QatNetwork", "Teacher"]:
    """What learns, and what teaches: the float network's first output and more of its values.

    Raises:
        RecipeError: the plan cannot be trained.
    """
    from qtool.qat.fake_quant_model import QatNetwork, to_float32
    from qtool.qat.quantizers import QAT_QUANTIZERS
    from qtool.runtime.executor import Executor

    model = prepared.loaded.model
    quantizer = section.quantizer.build(QAT_QUANTIZERS)
    network = QatNetwork(model, plan, quantizer, section.batchnorm, device)
    executor, first = Executor(model, device), str(model.graph.outputs[0].name)

    def teacher(feeds: Mapping[str, Any], more: Sequence[str]) -> dict[str, Any]:
        return executor(feeds, to_float32, list(dict.fromkeys((first, *more))))

    return network, teacher


def refuse_shares(recipe: Recipe, batch: int, fixed: int | None) -> None:
    """Raise where the processes cannot share a batch out among them.

    Args:
        recipe: names the line to change.
        batch: samples in a batch.
        fixed: the batch size the model insists on, or None.

    Raises:
        RecipeError: the model takes no part of a batch, or a process would have no sample, or no
            two to mix.
    """
    count = distributed.count()
    if count > 1 and fixed is not None:
        raise RecipeError(
            f"found {count} processes, but the model has a fixed batch of {fixed}, which cannot be "
            "shared out; train in one process"
        )
    if batch < count:
        raise recipe.error(
            ("qat", "batch"), f"found {batch} samples for {count} processes; use fewer processes"
        )
    if recipe.qat is not None and recipe.qat.augment.mixes and batch // count < 2:
        why = f"found a batch of {batch} for {count} processes, expected 2 images or more for each"
        raise recipe.error(("qat", "augment"), f"{why}, one to be mixed with another")
