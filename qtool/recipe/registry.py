"""Everything a recipe can name, by kind: for the reader of recipes and for ``qtool list``."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel


def _calibrators() -> Mapping[str, Any]:
    from qtool.calibration import CALIBRATORS

    return CALIBRATORS


def _schemes() -> Mapping[str, Any]:
    from qtool.weights import SCHEMES

    return SCHEMES


def _scales() -> Mapping[str, Any]:
    from qtool.weights.scale_constraints import SCALES

    return SCALES


def _ptq() -> Mapping[str, Any]:
    from qtool.ptq import PTQ_STEPS

    return PTQ_STEPS


def _rewrites() -> Mapping[str, Any]:
    from qtool.rewrites import REWRITES

    return REWRITES


def _targets() -> Mapping[str, Any]:
    from qtool.targets.loader import load_target, target_names

    return {name: load_target(name) for name in target_names()}


def _metrics() -> Mapping[str, Any]:
    from qtool.metrics.registry import METRICS

    return METRICS


def _readers() -> Mapping[str, Any]:
    from qtool.data import READERS

    return READERS


def _preprocess() -> Mapping[str, Any]:
    from qtool.data.preprocess import load_preprocess, preprocess_names

    return {name: load_preprocess(name) for name in preprocess_names()}


def _quantizers() -> Mapping[str, Any]:
    from qtool.qat.quantizers import QAT_QUANTIZERS

    return QAT_QUANTIZERS


KINDS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "calibrators": _calibrators,
    "schemes": _schemes,
    "scales": _scales,
    "ptq": _ptq,
    "quantizers": _quantizers,
    "rewrites": _rewrites,
    "targets": _targets,
    "metrics": _metrics,
    "readers": _readers,
    "preprocess": _preprocess,
}


@dataclass(frozen=True)
class Option:
    """One option of an entry: its name, type and default (``required`` where it has none)."""

    name: str
    type: str
    default: str


@dataclass(frozen=True)
class Description:
    """What ``qtool list`` says about an entry."""

    summary: str
    text: str
    options: tuple[Option, ...]


def describe(kind: str, name: str) -> Description:
    """What there is to say about the entry ``name`` of ``kind``."""
    entry = KINDS[kind]()[name]
    text = _TEXTS.get(kind, _docstring)(entry)
    options = _reader_options(name) if kind == "readers" else options_of(entry)
    return Description(text.partition("\n")[0], text, options)


def _docstring(entry: Any) -> str:
    return inspect.getdoc(entry) or "(no help)"


def _about_target(target: Any) -> str:
    ops = ", ".join(sorted(target.ops))
    return f"{target.description}\n\n{target.measured}\n\nIn integers: {ops}"


def _about_metric(metric: Any) -> str:
    return f"{metric.help} (unit: {metric.unit})"


def _about_preprocess(preprocess: Any) -> str:
    return _as_recipe(preprocess)


_TEXTS: dict[str, Callable[[Any], str]] = {
    "targets": _about_target,
    "metrics": _about_metric,
    "preprocess": _about_preprocess,
}


def _reader_options(name: str) -> tuple[Option, ...]:
    """The keys of a data section that this reader uses."""
    from qtool.data.config import READER_KEYS, DataSection

    idle = {*READER_KEYS, "preprocess", "labels", "code"} - {name, *_ALSO.get(name, ())}
    found = []
    for key, field in DataSection.model_fields.items():
        parts = [part for part in get_args(field.annotation) if _is_model(part)]
        if key == name and parts:
            found += _fields_of(key, parts[0])
        elif key not in idle:
            found.append(Option(key, _type_name(field.annotation), _default(field)))
    return tuple(found)


_ALSO = {"images": ("preprocess", "labels"), "wav": ("labels",), "python": ("code",)}


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields_of(key: str, model: type[BaseModel]) -> list[Option]:
    """The keys below ``key``, dots between."""
    found = []
    for name, field in model.model_fields.items():
        inner = [part for part in get_args(field.annotation) if _is_model(part)]
        if inner:
            found += _fields_of(f"{key}.{name}", inner[0])
        else:
            found.append(Option(f"{key}.{name}", _type_name(field.annotation), _default(field)))
    return found


def options_of(entry: Any) -> tuple[Option, ...]:
    """The options of a table entry: the fields of a dataclass, none for a function."""
    if not (isinstance(entry, type) and is_dataclass(entry)):
        return ()
    return tuple(Option(f.name, _type_name(f.type), _default(f)) for f in fields(entry) if f.init)


def _type_name(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    inner = [_type_name(part) for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) in (Union, UnionType):
        return " | ".join(inner)
    return f"{get_origin(annotation).__name__}[{', '.join(inner)}]"


def _default(field: Any) -> str:
    """The default of a dataclass's or a pydantic model's field, as a recipe would write it."""
    held: Any = field.default
    inner: Any = held if hasattr(held, "is_required") else field
    if hasattr(inner, "is_required"):
        if inner.is_required():
            return "required"
        held = inner.get_default(call_default_factory=True)
    elif field.default_factory is not MISSING:
        held = field.default_factory()
    return "required" if held is MISSING else _as_recipe(held)


def _as_recipe(value: Any) -> str:
    if isinstance(value, BaseModel):
        return _as_recipe(value.model_dump(exclude_none=True))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_as_recipe(item)}" for key, item in value.items()) + "}"
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
