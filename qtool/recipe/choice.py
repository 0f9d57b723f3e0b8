"""A name from a table with its options, as recipes and calls write it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_serializer

from qtool.errors import RecipeError
from qtool.recipe.error_messages import describe
from qtool.recipe.network import Part
from qtool.recipe.validation import check_choice
from qtool.recipe.yaml_loader import Document


class Choice(Part):
    """A name from a table, with options: ``mse``, or ``{percentile: {q: 0.9999}}``."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_serializer
    def _to_yaml(self) -> Any:
        return {self.name: self.options} if self.options else self.name

    def build(self, table: Mapping[str, Any]) -> Any:
        """The entry of ``table`` with this name, made with these options."""
        return table[self.name](**self.options)


def _choice(found: Any) -> Any:
    """What YAML holds for a choice, as the fields of :class:`Choice`."""
    if isinstance(found, Choice):
        return found
    if isinstance(found, str):
        return Choice(name=found)
    if isinstance(found, Mapping) and len(found) == 1:
        ((name, options),) = found.items()
        if options is None or isinstance(options, Mapping):
            return Choice(name=name, options=dict(options or {}))
    raise ValueError(
        f"found {describe(found)}, expected a name, or one name with options: "
        "{name: {key: value}}"
    )


def read_choice(found: Any, kind: str, place: str) -> Choice:
    """A choice that was not written in a recipe, checked as one.

    Args:
        found: a name, or one name with options.
        kind: of the catalog.
        place: named in errors.

    Raises:
        RecipeError: an unknown name or option, or another form.
    """
    try:
        chosen = _choice(found)
    except ValueError as error:
        raise RecipeError(f"{place}: {error}") from error
    check_choice(chosen, kind, (), Document({}, {}, place))
    return chosen


NamedChoice = Annotated[Choice, BeforeValidator(_choice)]
