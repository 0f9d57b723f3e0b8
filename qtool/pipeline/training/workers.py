"""Train in several processes: messages from the first one, and the work of the others.

The first process does everything that one process does. The others wait until it has calibrated,
read the same model and data, and train in step; they write and print nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qtool.data import Dataset, open_dataset
from qtool.errors import RecipeError
from qtool.graph.original import original
from qtool.pipeline.inputs.streams import StreamRecorder
from qtool.pipeline.prepare import with_shared
from qtool.pipeline.processes.message import Worker
from qtool.qat import distributed
from qtool.quant.plan import QuantPlan
from qtool.recipe.model import Recipe
from qtool.recipe.sections.qat import Qat
from qtool.steps.context import Context

if TYPE_CHECKING:
    from qtool.qat.fake_quant_model import QatNetwork
    from qtool.qat.loss import Teacher
    from qtool.qat.settings import Settings


@dataclass(frozen=True)
class TrainingStart:
    """Message from the first process to the others when training begins.

    Attributes:
        plan: that training starts from.
        settings: of the training loop.
        checkpoint: file that the first process keeps its progress in.
        model: digest of its model.
        samples: (name, position) of its training samples.
    """

    plan: QuantPlan
    settings: "Settings"
    checkpoint: Path
    model: str
    samples: tuple[tuple[str, int], ...]

    def assist(self, worker: Worker) -> None:
        """Train with the first process.

        Raises:
            QtoolError: model or data are not here what they are to the first process.
        """
        import torch

        from qtool.qat.settings import RunFiles
        from qtool.qat.trainer import train

        torch.manual_seed(worker.options.seed)
        prepared = worker.prepared
        recipe, context, section = prepared.recipe, prepared.context, prepared.recipe.qat
        if section is None:
            raise AssertionError("the first process trains without a qat section")
        data = open_section(recipe, section, context)
        names = enumerate(zip(data.names, data.positions, strict=True))
        index = {sample: k for k, sample in names}
        missing = sum(sample not in index for sample in self.samples)
        if missing or context.sha256 != self.model:
            problem = f"{missing} samples are missing" if missing else "the model is another one"
            raise RecipeError(
                f"process {distributed.rank()}: {problem}; every process must see the same files"
            )
        train_data = data.take([index[sample] for sample in self.samples])
        network, teacher = build_network(section, context, self.plan)
        # The first process alone scores epochs; no validation sample is read for that here.
        train(network, teacher, train_data, train_data, self.settings, RunFiles(self.checkpoint))


def start_workers(
    plan: QuantPlan, settings: "Settings", checkpoint: Path, model: str, train_data: Dataset
) -> None:
    """Let the other processes, if there are any, begin to train.

    Args:
        plan: that training starts from.
        settings: of the training loop.
        checkpoint: file that this process keeps its progress in.
        model: digest of the model.
        train_data: samples that are trained on.
    """
    if distributed.count() > 1:
        samples = tuple(zip(train_data.names, train_data.positions, strict=True))
        message = TrainingStart(plan, settings, checkpoint, model, samples)
        distributed.share(lambda: message)


def open_section(recipe: Recipe, section: Qat, context: Context) -> Dataset:
    """Open all samples of the ``qat`` section."""
    section_with = with_shared(section, recipe)
    dataset = open_dataset(section_with, context.inputs, trust_code=context.trust_code)
    parts = (context.sha256,)
    streams = StreamRecorder(context.model, context.inputs, context.cache, parts, context.progress)
    return streams.with_states(dataset)[0]


def build_network(
    section: Qat, context: Context, plan: QuantPlan
) -> tuple["QatNetwork", "Teacher"]:
    """Return the network to train, and the float network as teacher.

    Args:
        section: the recipe's ``qat``.
        context: holds the graph.
        plan: that training starts from.

    Raises:
        RecipeError: the plan cannot be trained.
    """
    from qtool.qat.fake_quant_model import QatNetwork
    from qtool.qat.loss import float_teacher
    from qtool.qat.quantizers import QAT_QUANTIZERS

    quantizer = section.quantizer.build(QAT_QUANTIZERS)
    network = QatNetwork(context.model, plan, quantizer, section.batchnorm, context.device)
    return network, float_teacher(original(context.model), context.device)


def check_shares(recipe: Recipe, batch: int, fixed: int | None) -> None:
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
