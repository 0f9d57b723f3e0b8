"""A name from a table with its options, as recipes and calls write it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from qtool.errors import RecipeError, suggest
from qtool.recipe.error_messages import describe, explain
from qtool.recipe.network import Part
from qtool.recipe.registry import KINDS, options_of
from qtool.recipe.yaml_loader import Document, Path


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


_MANY = {"ptq": "ptq steps"}


def check_choice(choice: Choice, kind: str, path: Path, document: Document) -> None:
    """Check a name against its table, and its options against its entry.

    Raises:
        RecipeError: an unknown name or option, or a value an option does not take.
    """
    entry = _name(choice.name, kind, path, document)
    path = (*path, choice.name)
    known = [option.name for option in options_of(entry)]
    for name in choice.options:
        if name not in known:
            have = f"it has {', '.join(known)}" if known else "it has none"
            text = f"unknown option of {choice.name}{suggest(name, known)}"
            raise document.error((*path, name), f"{text} ({have})")
    if not known:
        return
    try:
        TypeAdapter(entry).validate_python(choice.options)
    except ValidationError as error:
        raise explain(error, document, BaseModel, path) from error


def _name(name: str, kind: str, path: Path, document: Document) -> Any:
    table: Mapping[str, Any] = KINDS[kind]()
    if name in table:
        return table[name]
    if not table:
        raise document.error(
            path, f'found "{name}", but this version has no {_MANY.get(kind, kind)} yet; remove it'
        )
    hint = suggest(name, table)
    raise document.error(path, f'found "{name}", expected one of {", ".join(sorted(table))}{hint}')
