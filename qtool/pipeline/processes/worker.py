"""The work of every process but the first: what the first one's messages name, until it is done.

The first process does everything that one process does, and sends a message before each part of
the work that is shared. The others read the same model and data; they write and print nothing.
"""

from functools import cached_property

from qtool.pipeline.annotate_stage import make_plan
from qtool.pipeline.context import Prepared, RunOptions
from qtool.pipeline.prepare import prepare
from qtool.pipeline.processes.message import Message, Worker
from qtool.pipeline.stages import rewrite
from qtool.qat import distributed
from qtool.recipe.model import Recipe
from qtool.steps.stage_cache import StageCache


class AssistingProcess:
    """One of the other processes.

    Attributes:
        options: of the run.
    """

    def __init__(self, recipe: Recipe, cache: StageCache, options: RunOptions) -> None:
        """Prepare to assist.

        Args:
            recipe: that every process reads.
            cache: holds models that the first process exported.
            options: of the run.
        """
        self.options = options
        self._recipe, self._cache = recipe, cache

    @cached_property
    def prepared(self) -> Prepared:
        """The model, rewritten, and the data; read when the first message needs them."""
        prepared = prepare(self._recipe, self._cache, self.options)
        rewrite(prepared.recipe, prepared.context)
        make_plan(prepared.context)  # it changes the graph where a value must be read at two widths
        return prepared


def assist(worker: Worker) -> None:
    """Do what the messages of the first process name, until it is done.

    Args:
        worker: this process.

    Raises:
        QtoolError: model or data are not here what they are to the first process.
        ProcessLost: the first process ended early; it says why.
    """
    while (message := distributed.share(_no_message)) is not None:
        message.assist(worker)


def _no_message() -> Message | None:
    raise AssertionError("the first process sends the messages, the others receive them")


def finish() -> None:
    """End the work of the other processes."""
    distributed.share(lambda: None)
