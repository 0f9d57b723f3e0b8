"""Refuse a latency section that this run cannot measure, before minutes of work."""

from qtool.errors import RecipeError
from qtool.recipe.model import Recipe
from qtool.recipe.sections.latency import Latency
from qtool.verification.latency.runtimes import Runner, ThisMachine
from qtool.verification.latency.ssh_runner import SshRunner


def runner_of(section: Latency) -> Runner:
    """Return the machine that times the files."""
    return ThisMachine() if section.host is None else SshRunner(section.host, section.python)


def require_runtimes(recipe: Recipe) -> None:
    """Refuse runtimes that the machine of the recipe lacks, and a machine that does not answer.

    Args:
        recipe: with its latency section, if it has one.

    Raises:
        RecipeError: names the runtime and what to install, or why the machine does not answer.
    """
    section = recipe.latency
    if section is None:
        return
    with recipe.locate_errors():
        runner = runner_of(section)
        machine = runner.probe()
        for k, name in enumerate(section.runtimes):
            reason = machine.missing(name)
            if reason:
                where = f"on {runner.name}: " if runner.name else ""
                raise RecipeError(f"{where}{reason}", key=("latency", "runtimes", k))


def check_batches(recipe: Recipe, fixed: int | None) -> None:
    """Refuse batches that the model does not take.

    Args:
        recipe: with its latency section, if it has one.
        fixed: the batch size that the model fixes, or None.

    Raises:
        RecipeError: another size is in ``latency.batch``.
    """
    sizes = recipe.latency.batch if recipe.latency is not None else None
    for k, size in enumerate(sizes or ()):
        if fixed is not None and size != fixed:
            raise recipe.error(
                ("latency", "batch", k),
                f"found {size}, but the model fixes its batch at {fixed}; write batch: [{fixed}], "
                "or export the model with a batch of any size",
            )
