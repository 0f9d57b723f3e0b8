"""Replace what a recipe leaves to a search by what the search chooses."""

from dataclasses import replace
from pathlib import Path

from qtool.errors import KeyPath
from qtool.pipeline.context import RunOptions
from qtool.pipeline.search.bit_search import BitSearch
from qtool.pipeline.search.climb import Climb
from qtool.pipeline.search.requested import requested_search
from qtool.pipeline.search.trial import TrialRunner
from qtool.qat.distributed import expected
from qtool.recipe.model import Recipe
from qtool.report.search_schema import SearchPart
from qtool.search.auto import Auto, Deadline
from qtool.steps.stage_cache import StageCache


def resolve_search(
    recipe: Recipe, cache: StageCache, options: RunOptions, folder: Path
) -> tuple[Recipe, SearchPart | None]:
    """Return the recipe without searches: it runs as if the user had written it so.

    Evaluation samples are not read for choosing.

    Args:
        recipe: as it was read.
        cache: records the stage; finished trials are kept there.
        options: of the run.
        folder: an existing folder for temporary files.

    Returns:
        The recipe, and what was tried; None where the recipe leaves nothing to a search.

    Raises:
        QtoolError: no choice is within the budget, or anything else that is the user's to fix.
    """
    request = requested_search(recipe)
    if request.key is None:
        return recipe, None
    _check_options(recipe, request.key, options)
    with cache.stage("search") as record, recipe.locate_errors():
        # Stages of the trials are no stages of the run.
        deadline = Deadline(options.progress)
        timed = replace(options, progress=deadline)
        runner = TrialRunner.of(request.recipe, replace(cache, done=[]), timed, folder)
        if runner.fewer is not None:
            record.notes.append(
                f"{runner.fewer} samples calibrate what is tried, as many others compare it: "
                f"calibrate: {{count: {runner.fewer}}}"
            )
        reference = runner.reference
        if reference.metric is not None and reference.dataset.labels is None:
            record.notes.append(
                "the calibration samples have no labels: drops are those that the float network's "
                "probabilities let expect"
            )
        search: Climb | BitSearch
        if request.budget is not None:
            search = BitSearch(runner, request.budget, record)
        else:
            search = Climb(runner, request.auto or Auto(), record, deadline)
        chosen, part = search.run()
    chosen._document = recipe._document
    return chosen, part


def _check_options(recipe: Recipe, key: KeyPath, options: RunOptions) -> None:
    """Refuse what a search cannot follow, before any work.

    Raises:
        RecipeError: the grids are those of an earlier plan, or there are several processes.
    """
    if options.plan_file is not None:
        raise recipe.error(
            key, "a search calibrates every recipe that it tries; leave out --plan, or the search"
        )
    if expected()[1] > 1:
        raise recipe.error(
            key,
            "a search runs in one process; run `qtool ptq` first, then torchrun with the recipe in "
            "its run folder",
        )
