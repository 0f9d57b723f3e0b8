"""Options of table entries: their names, types and defaults, as a recipe writes them."""

from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Option:
    """One option of an entry: its name, type and default (``required`` where it has none)."""

    name: str
    type: str
    default: str


def options_of(entry: object) -> tuple[Option, ...]:
    """Return the options of a table entry: the fields of a dataclass, none for a function."""
    if not (isinstance(entry, type) and is_dataclass(entry)):
        return ()
    return tuple(Option(f.name, _type_name(f.type), _default(f)) for f in fields(entry) if f.init)


def reader_options(name: str) -> tuple[Option, ...]:
    """Return the keys of a data section that the reader ``name`` uses."""
    from qtool.data import READERS, DataSection

    unused = {*READERS, *(key for reader in READERS.values() for key in reader.uses)}
    unused -= {name, *READERS[name].uses}
    options = []
    for key, field in DataSection.model_fields.items():
        models = [part for part in get_args(field.annotation) if _is_model(part)]
        if key == name and models:
            options += _nested_options(key, models[0])
        elif key not in unused:
            options.append(Option(key, _type_name(field.annotation), _default(field)))
    return tuple(options)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _nested_options(key: str, model: type[BaseModel]) -> list[Option]:
    """Return the keys below ``key``, joined to it by dots."""
    options = []
    for name, field in model.model_fields.items():
        models = [part for part in get_args(field.annotation) if _is_model(part)]
        if models:
            options += _nested_options(f"{key}.{name}", models[0])
        else:
            options.append(Option(f"{key}.{name}", _type_name(field.annotation), _default(field)))
    return options


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    inner = [_type_name(part) for part in get_args(annotation) if part not in (type(None), ...)]
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(inner)
    return f"{get_origin(annotation).__name__}[{', '.join(inner)}]"


def _default(field: "Field[Any] | FieldInfo") -> str:
    """Return the default of a dataclass's or a pydantic model's field, as a recipe writes it."""
    # In a pydantic dataclass the default of a standard field may itself be a pydantic field.
    inner = field.default if isinstance(field.default, FieldInfo) else field
    if isinstance(inner, FieldInfo):
        if inner.is_required():
            return "required"
        return as_recipe(inner.get_default(call_default_factory=True))
    if inner.default_factory is not MISSING:
        return as_recipe(inner.default_factory())
    return "required" if inner.default is MISSING else as_recipe(inner.default)


def as_recipe(value: object) -> str:
    """Return a value on one line, as a recipe writes it."""
    if isinstance(value, BaseModel):
        return as_recipe(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {as_recipe(item)}" for key, item in value.items()) + "}"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
