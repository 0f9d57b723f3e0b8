"""Everything a recipe can name, by kind: for the reader of recipes and for ``qtool list``."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any


def _calibrators() -> Mapping[str, Any]:
    from qtool.calibrators import CALIBRATORS

    return CALIBRATORS


def _ptq() -> Mapping[str, Any]:
    from qtool.ptq import PTQ_STEPS

    return PTQ_STEPS


def _rewrites() -> Mapping[str, Any]:
    from qtool.rewrites import REWRITES

    return REWRITES


def _targets() -> Mapping[str, Any]:
    from qtool.targets import load_target, target_names

    return {name: load_target(name) for name in target_names()}


def _metrics() -> Mapping[str, Any]:
    from qtool.metrics import METRICS

    return METRICS


def _readers() -> Mapping[str, Any]:
    from qtool.data import READERS

    return READERS


def _preprocess() -> Mapping[str, Any]:
    from qtool.data.preprocess import known_names, load_preprocess

    return {name: load_preprocess(name) for name in known_names()}


KINDS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "calibrators": _calibrators,
    "ptq": _ptq,
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


def options_of(entry: Any) -> tuple[Option, ...]:
    """The options of a table entry: the fields of a dataclass, none for a function."""
    if not (isinstance(entry, type) and is_dataclass(entry)):
        return ()
    return tuple(Option(f.name, _type_name(f.type), _default(f)) for f in fields(entry) if f.init)


def _type_name(annotation: Any) -> str:
    return (
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__name__", str(annotation))
    )


def _default(field: Any) -> str:
    if field.default_factory is not MISSING:
        return str(field.default_factory())
    default = field.default
    if hasattr(default, "is_required"):  # pydantic's Field(...)
        return (
            "required"
            if default.is_required()
            else str(default.get_default(call_default_factory=True))
        )
    return "required" if default is MISSING else str(default)
