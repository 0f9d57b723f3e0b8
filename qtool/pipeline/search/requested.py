"""Read what a recipe leaves to a search."""

from dataclasses import dataclass

from qtool.errors import KeyPath, RecipeError
from qtool.pipeline.context import RunOptions
from qtool.recipe.model import Recipe
from qtool.recipe.sections.budget import Budget
from qtool.search import SEARCHES
from qtool.search.auto import Auto


@dataclass(frozen=True)
class Requested:
    """The search that a recipe asks for, and what the search starts from.

    Attributes:
        recipe: without what is searched.
        budget: within which widths are chosen; None: they are not.
        auto: chooses the whole recipe; None: it does not.
    """

    recipe: Recipe
    budget: Budget | None
    auto: Auto | None

    @property
    def key(self) -> KeyPath | None:
        """The key of the recipe that asks for a search; None where none does."""
        if self.budget is not None:
            return ("bits", "budget")
        return None if self.auto is None else ("ptq",)

    @property
    def words(self) -> str | None:
        """The choice that a run makes before all else, in words; None without a search."""
        if self.budget is not None:
            return "a run chooses the widths first, within bits.budget; shown are the recipe's own"
        if self.auto is not None:
            return f"a run chooses the recipe first, for up to {self.auto.time} (ptq: auto)"
        return None


def requested_search(recipe: Recipe) -> Requested:
    """Return the search that a recipe asks for.

    Args:
        recipe: as it was read.

    Raises:
        RecipeError: there are two, or steps stand beside one that chooses all steps.
    """
    budget, auto = recipe.bits.budget, _auto(recipe)
    if budget is not None and auto is not None:
        raise recipe.error(
            ("ptq",),
            "auto chooses steps and bits for gates.max_drop, a budget limits bits; remove one of "
            "the two",
        )
    bits = recipe.bits.model_copy(update={"budget": None})
    plain = recipe.model_copy(update={"bits": bits, "ptq": None if auto else recipe.ptq})
    plain._document = recipe._document
    return Requested(plain, budget, auto)


def _auto(recipe: Recipe) -> Auto | None:
    names = [choice.name for choice in recipe.ptq or ()]
    searches = [name for name in names if name in SEARCHES]
    if not searches:
        return None
    if len(names) > 1:
        raise recipe.error(
            ("ptq",), f"{searches[0]} chooses all steps, but others stand beside it; remove them"
        )
    return (recipe.ptq or ())[0].build(SEARCHES)


def check_spread(recipe: Recipe, options: RunOptions) -> None:
    """Refuse several processes for a recipe that leaves nothing to a search: it uses one.

    Args:
        recipe: as it was read.
        options: of the run.

    Raises:
        RecipeError: says what reads the options.
    """
    if options.spread.several and requested_search(recipe).key is None:
        raise RecipeError(
            "--jobs, --cluster: they spread the trials of a search, and the recipe has none: found "
            "neither bits.budget nor ptq: auto; leave the option out"
        )


def refuse_search(recipe: Recipe) -> None:
    """Refuse a recipe that leaves something to a search, where none is run.

    Raises:
        RecipeError: says which command runs it.
    """
    key = requested_search(recipe).key
    if key is not None:
        raise recipe.error(
            key,
            "`qtool ptq` and `qtool qat` choose what this leaves open; run one of these first: its "
            "run folder holds the recipe that was chosen",
        )
