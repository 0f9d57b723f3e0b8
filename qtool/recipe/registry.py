"""Kinds of names that a recipe can hold: the table of each, and the keys where its names stand.

Validation, the JSON schema, ``qtool list`` and the table of kinds in docs/recipe.md loop over
:data:`KINDS`. The tables are imported when they are read: most of them need numpy or torch.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from qtool.recipe.entry_options import Option, as_recipe, options_of, reader_options
from qtool.user_code import is_function_name

if TYPE_CHECKING:
    from qtool.calibration.statistics import Calibrator
    from qtool.data import Preprocess, Reader
    from qtool.metrics.registry import Metric
    from qtool.pruning.method import PruningMethod
    from qtool.qat.quantizers.base import QatQuantizer
    from qtool.rewrites.rewrite import Rewrite, SampleRewrite
    from qtool.search.mixed_precision import BudgetMethod
    from qtool.steps.step import Step
    from qtool.targets.target import Target
    from qtool.verification.latency.runtimes import Runtime
    from qtool.weights.scale_constraints import ScaleKind
    from qtool.weights.scheme import WeightScheme

Entry = TypeVar("Entry")

Place = tuple[str, ...]
"""Keys from the top of a recipe down to a name; :data:`ITEM` and :data:`NAME` may be among them."""

ITEM = "[]"
"""Stands in a place for every item of a list."""
NAME = "<name>"
"""Ends a place where the name is itself a key, such as ``images`` under ``calibrate``."""

DATA_SECTIONS = ("calibrate", "evaluate", "qat")


@dataclass(frozen=True)
class Alternative:
    """A text that may stand where a name does, such as the path of a file.

    Attributes:
        accepts: returns whether a text has this form.
        pattern: the form as a regular expression, for the JSON schema.
    """

    accepts: Callable[[str], bool]
    pattern: str


def _docstring(entry: object) -> str:
    return inspect.getdoc(entry) or "(no help)"


def _options(name: str, entry: object) -> tuple[Option, ...]:
    return options_of(entry)


@dataclass(frozen=True)
class Kind(Generic[Entry]):
    """One kind of names: its table, and where a recipe holds its names.

    Attributes:
        name: as in ``qtool list NAME``.
        table: imports and returns the table.
        at: the places of its names in a recipe.
        title: the plural for messages; empty: ``name``.
        alternative: what may stand there instead of a name.
        help: returns the help of an entry; its first line is the summary.
        options: returns the options of an entry, by its name and the entry.
    """

    name: str
    table: Callable[[], Mapping[str, Entry]]
    at: tuple[Place, ...]
    title: str = ""
    alternative: Alternative | None = None
    help: Callable[[Entry], str] = _docstring
    options: Callable[[str, Entry], tuple[Option, ...]] = _options


def _calibrators() -> "Mapping[str, type[Calibrator]]":
    from qtool.calibration import CALIBRATORS

    return CALIBRATORS


def _schemes() -> "Mapping[str, type[WeightScheme]]":
    from qtool.weights import SCHEMES

    return SCHEMES


def _scales() -> "Mapping[str, type[ScaleKind]]":
    from qtool.weights.scale_constraints import SCALES

    return SCALES


def _ptq() -> "Mapping[str, type[Step]]":
    from qtool.ptq import PTQ_STEPS
    from qtool.search import SEARCHES

    return {**PTQ_STEPS, **SEARCHES}


def _budget_methods() -> "Mapping[str, type[BudgetMethod]]":
    from qtool.search import BUDGET_METHODS

    return BUDGET_METHODS


def _pruning() -> "Mapping[str, type[PruningMethod]]":
    from qtool.pruning.registry import PRUNING_METHODS

    return PRUNING_METHODS


def _quantizers() -> "Mapping[str, type[QatQuantizer]]":
    from qtool.qat.quantizers import QAT_QUANTIZERS

    return QAT_QUANTIZERS


def _rewrites() -> "Mapping[str, Rewrite | SampleRewrite]":
    from qtool.rewrites import REWRITES, SAMPLE_REWRITES

    return {**REWRITES, **SAMPLE_REWRITES}


def _targets() -> "Mapping[str, Target]":
    from qtool.targets.loader import load_target, target_names

    return {name: load_target(name) for name in target_names()}


def _metrics() -> "Mapping[str, Metric]":
    from qtool.metrics.registry import METRICS

    return METRICS


def _readers() -> "Mapping[str, Reader]":
    from qtool.data import READERS

    return READERS


def _preprocess() -> "Mapping[str, Preprocess]":
    from qtool.data.preprocess import load_preprocess, preprocess_names

    return {name: load_preprocess(name) for name in preprocess_names()}


def _is_preprocess_path(text: str) -> bool:
    from qtool.data.preprocess import is_path

    return is_path(text)


def _runtimes() -> "Mapping[str, Runtime]":
    from qtool.verification.latency.runtimes import RUNTIMES

    return RUNTIMES


def _target_help(target: "Target") -> str:
    ops = ", ".join(sorted(target.ops))
    return f"{target.description}\n\n{target.measured}\n\nIn integers: {ops}"


def _metric_help(metric: "Metric") -> str:
    return f"{metric.help} (unit: {metric.unit})"


def _runtime_help(runtime: "Runtime") -> str:
    return f"{runtime.help}\n\nInstall: {runtime.install}"


def _reader_options(name: str, reader: "Reader") -> tuple[Option, ...]:
    return reader_options(name)


YAML_FILE = Alternative(lambda text: text.endswith((".yaml", ".yml")), r"\.ya?ml$")
FUNCTION = Alternative(is_function_name, r"^[^:\s]+:[^:\s]+$")
PROVIDER = Alternative(lambda text: text.endswith("ExecutionProvider"), "ExecutionProvider$")
PREPROCESS_FILE = Alternative(_is_preprocess_path, r"[/\\]|\.ya?ml$")

_ALL: tuple[Kind[Any], ...] = (
    Kind("calibrators", _calibrators, (("calibrate", "method"), ("calibrate", "weights"))),
    Kind("schemes", _schemes, (("bits", "scheme"),)),
    Kind("scales", _scales, (("bits", "scale"),)),
    Kind("ptq", _ptq, (("ptq", ITEM),), title="ptq steps"),
    Kind(
        "budget_methods",
        _budget_methods,
        (("bits", "budget", "method"),),
        title="methods of a budget",
    ),
    Kind("pruning", _pruning, (("pruning", "method"),), title="pruning methods"),
    Kind("quantizers", _quantizers, (("qat", "quantizer"),)),
    Kind("rewrites", _rewrites, (("rewrite", ITEM),)),
    Kind("targets", _targets, (("target",),), alternative=YAML_FILE, help=_target_help),
    Kind("metrics", _metrics, (("evaluate", "metric"),), alternative=FUNCTION, help=_metric_help),
    Kind(
        "readers",
        _readers,
        tuple((section, NAME) for section in DATA_SECTIONS),
        options=_reader_options,
    ),
    Kind(
        "preprocess",
        _preprocess,
        tuple((section, "preprocess") for section in DATA_SECTIONS),
        title="preprocess settings",
        alternative=PREPROCESS_FILE,
        help=as_recipe,
    ),
    Kind(
        "runtimes",
        _runtimes,
        (("latency", "runtimes", ITEM),),
        alternative=PROVIDER,
        help=_runtime_help,
    ),
)

KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in _ALL}
"""Name -> kind, in the order of ``qtool list``."""


@dataclass(frozen=True)
class Description:
    """The help of an entry: its first line, the whole text, and the options."""

    summary: str
    text: str
    options: tuple[Option, ...]


def describe(kind: Kind[Any], name: str) -> Description:
    """Return the help of the entry ``name`` of a kind.

    Args:
        kind: one of KINDS.
        name: a key of its table.
    """
    entry = kind.table()[name]
    text = kind.help(entry)
    return Description(text.partition("\n")[0], text, kind.options(name, entry))
