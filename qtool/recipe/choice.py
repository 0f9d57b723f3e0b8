"""A name from a table with its options, as recipes and calls write it."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    model_serializer,
)

from qtool.errors import KeyPath, RecipeError, suggest
from qtool.recipe.entry_options import options_of
from qtool.recipe.error_messages import describe, explain
from qtool.recipe.registry import KINDS, Kind
from qtool.recipe.sections.network import Part
from qtool.recipe.yaml_loader import Document

Built = TypeVar("Built")
Entry = TypeVar("Entry")


class Choice(Part):
    """A name from a table, with options: ``mse``, or ``{percentile: {q: 0.9999}}``."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_serializer
    def _to_yaml(self) -> Any:
        return {self.name: self.options} if self.options else self.name

    def build(self, table: Mapping[str, Callable[..., Built]]) -> Built:
        """Make the entry of ``table`` with this name and these options."""
        return table[self.name](**self.options)


def _choice(value: Any) -> Choice:
    """Convert what YAML holds for a choice."""
    if isinstance(value, Choice):
        return value
    if isinstance(value, str):
        return Choice(name=value)
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, options),) = value.items()
        if options is None or isinstance(options, Mapping):
            return Choice(name=name, options=dict(options or {}))
    raise ValueError(
        f"found {describe(value)}, expected a name, or one name with options: "
        "{name: {key: value}}"
    )


def read_choice(value: str | Mapping[str, Any], kind: str, place: str) -> Choice:
    """Read a choice that was not written in a recipe, and check it as one.

    Args:
        value: a name, or one name with options.
        kind: the name of its kind in KINDS.
        place: named in errors.

    Raises:
        RecipeError: an unknown name or option, or another form.
    """
    try:
        choice = _choice(value)
    except ValueError as error:
        raise RecipeError(f"{place}: {error}") from error
    document = Document({choice.name: choice.options}, {}, place)
    check_choice(choice, KINDS[kind], (), document)
    return choice


NamedChoice = Annotated[Choice, BeforeValidator(_choice)]


def check_choice(choice: Choice, kind: Kind[Any], path: KeyPath, document: Document) -> None:
    """Check a name against its table, and its options against its entry.

    Args:
        choice: the name and its options.
        kind: of the name.
        path: the keys down to the choice.
        document: the data that holds it, for messages.

    Raises:
        RecipeError: an unknown name or option, or a value an option does not take.
    """
    entry = find_entry(choice.name, kind, path, document)
    path = (*path, choice.name)
    names = [option.name for option in options_of(entry)]
    for name in choice.options:
        if name not in names:
            have = f"it has {', '.join(names)}" if names else "it has none"
            text = f"unknown option of {choice.name}{suggest(name, names)}"
            raise document.error((*path, name), f"{text} ({have})")
    if not names:
        return
    try:
        TypeAdapter(entry).validate_python(choice.options)
    except ValidationError as error:
        raise explain(error, document, BaseModel, path) from error


def find_entry(name: str, kind: Kind[Entry], path: KeyPath, document: Document) -> Entry:
    """Return the entry of a kind's table.

    Args:
        name: of the entry.
        kind: whose table is searched.
        path: the keys down to the name.
        document: the data that holds it, for messages.

    Raises:
        RecipeError: there is no such entry; names the closest one.
    """
    table = kind.table()
    if name in table:
        return table[name]
    if not table:
        raise document.error(
            path,
            f'found "{name}", but this version has no {kind.title or kind.name} yet; remove it',
        )
    hint = suggest(name, table)
    raise document.error(path, f'found "{name}", expected one of {", ".join(sorted(table))}{hint}')
