"""Read targets from ``configs/targets/*.yaml``; errors name the file and the key."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from qtool.errors import RecipeError, suggest
from qtool.quant.primitives import Granularity, PerChannel, PerTensor, QuantSpec
from qtool.targets.target import (
    BIASES,
    DYNAMIC_OPS,
    FLOAT_PATTERNS,
    FORMATS,
    FORMS,
    GRANULARITIES,
    NEWEST_OPSET,
    OUTPUTS,
    PACKING,
    OpRule,
    Target,
    WeightZeroPoint,
)

# libyaml's, where it is installed: it reads the shipped targets in 15 ms instead of 150.
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def config_folder(kind: str) -> Path:
    """Return the folder ``configs/<kind>``: inside the wheel, or next to the package in a checkout.

    Args:
        kind: such as "targets".
    """
    here = Path(__file__).parents[1]
    inside = here / "configs" / kind
    return inside if inside.is_dir() else here.parent / "configs" / kind


def target_names() -> tuple[str, ...]:
    """Return the names of the shipped targets."""
    return tuple(sorted(p.stem for p in config_folder("targets").glob("*.yaml")))


def load_target(name: str) -> Target:
    """Read a target by name, or from a path ending in ``.yaml``.

    Args:
        name: of a shipped target, or a path.

    Raises:
        RecipeError: unknown name, unreadable file, unknown or missing key (names the file and key).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else None
    if path is None:
        path = config_folder("targets") / f"{name}.yaml"
        if not path.is_file():
            names = target_names()
            raise RecipeError(
                f'target: "{name}" is not a target{suggest(name, names)} known: {", ".join(names)};'
                " or give the path of a .yaml file"
            )
    return _target(_with_base(_read(path), path), path)


def _read(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(), _Loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"target {path}: cannot be read: {error}") from error


def _with_base(raw: Any, path: Path) -> Any:
    """Merge the file's keys over those of the shipped target that it is ``like``.

    That target must not be ``like`` another one.
    """
    if not isinstance(raw, dict) or "like" not in raw:
        return raw
    base = _typed(raw["like"], str, f"{path}: like")
    _check_one_of(base, target_names(), f"{path}: like")
    inherited = _read(config_folder("targets") / f"{base}.yaml")
    if "like" in inherited:
        raise RecipeError(f'target {path}: like: "{base}" is itself like another; name that one')
    # The measurements of a target hold for no other one.
    own = ("name", "description", "measured")
    return {
        **{key: value for key, value in inherited.items() if key not in own},
        **{key: value for key, value in raw.items() if key != "like"},
    }


def _target(raw: Any, path: Path) -> Target:
    _check_keys(
        raw,
        {f.name for f in fields(Target)},
        str(path),
        {f.name for f in fields(Target) if _is_required(f)},
    )
    for key in ("name", "description", "measured"):
        _typed(raw[key], str, f"{path}: {key}")
    _check_one_of(raw.get("bias", "int32"), BIASES, f"{path}: bias")
    _typed(raw["ops"], dict, f"{path}: ops")
    specs = {key: _spec(raw[key], f"{path}: {key}") for key in ("activations", "weights")}
    opset = _typed(raw["opset"], int, f"{path}: opset")
    opsets = _opsets(raw.get("opsets", [opset, NEWEST_OPSET]), opset, f"{path}: opsets")
    return Target(
        name=raw["name"],
        description=raw["description"],
        opset=opset,
        activations=specs["activations"],
        weights=specs["weights"],
        ops={op: _rule(rule, f"{path}: ops.{op}") for op, rule in raw["ops"].items()},
        rewrites=_list(raw["rewrites"], str, f"{path}: rewrites"),
        sample_rewrites=_list(raw.get("sample_rewrites", []), str, f"{path}: sample_rewrites"),
        measured=raw["measured"],
        requantizes=_list(raw.get("requantizes", []), str, f"{path}: requantizes"),
        dynamic=_dynamic(raw.get("dynamic", {}), f"{path}: dynamic"),
        stores=_stores(raw.get("stores", {}), f"{path}: stores"),
        widths=_widths(raw.get("widths", {}), specs, f"{path}: widths"),
        int16_pairs=_typed(raw.get("int16_pairs", False), bool, f"{path}: int16_pairs"),
        integer_only=_typed(raw.get("integer_only", False), bool, f"{path}: integer_only"),
        scale=_scale(raw.get("scale", "float"), f"{path}: scale"),
        packing=_packing(raw.get("packing", []), f"{path}: packing"),
        granularities=_names(
            raw.get("granularities", [specs["weights"].granularity.name]),
            GRANULARITIES,
            f"{path}: granularities",
        ),
        formats=_names(raw.get("formats", ["qdq"]), FORMATS, f"{path}: formats"),
        opsets=opsets,
        runtime=_typed(raw.get("runtime", "onnxruntime"), str, f"{path}: runtime"),
        isa=_list(raw.get("isa", []), str, f"{path}: isa"),
        bias=raw.get("bias", "int32"),
        unsigned_where_positive=_typed(
            raw.get("unsigned_where_positive", False), bool, f"{path}: unsigned_where_positive"
        ),
        float_patterns=_float_patterns(raw, f"{path}: float_patterns"),
        no_gain=_no_gain(raw, f"{path}: no_gain"),
        island_gain_db=_island_gain(raw.get("island_gain_db"), f"{path}: island_gain_db"),
        group_channels=_typed(raw.get("group_channels", 0), int, f"{path}: group_channels"),
        weight_zero_point=_weight_zero_point(
            raw.get("weight_zero_point"), f"{path}: weight_zero_point"
        ),
    )


def _is_required(field_: Field[Any]) -> bool:
    return field_.default is MISSING and field_.default_factory is MISSING


def _scale(raw: Any, where: str) -> str:
    kinds = ("float", "power_of_two", "double_shift", "fixed_point:16", "fixed_point:32")
    _check_one_of(raw, kinds, where)
    return str(raw)


def _packing(raw: Any, where: str) -> tuple[str, ...]:
    for form in _list(raw, str, where):
        _check_one_of(form, tuple(PACKING), where)
    return tuple(raw)


def _widths(raw: Any, specs: Mapping[str, QuantSpec], where: str) -> dict[str, tuple[int, int]]:
    _check_keys(raw, set(specs), where, required=set())
    widths = {key: (spec.bits, spec.bits) for key, spec in specs.items()}
    for key, value in raw.items():
        limits = _list(value, int, f"{where}.{key}")
        if len(limits) != 2 or not 1 <= limits[0] <= limits[1] <= 16:
            raise RecipeError(
                f"target {where}.{key}: expected [fewest, most] bits within 1 and 16, found "
                f"{list(limits)}"
            )
        widths[key] = (limits[0], limits[1])
    return widths


def _dynamic(raw: Any, where: str) -> dict[str, int]:
    for op, least in _typed(raw, dict, where).items():
        _check_one_of(op, DYNAMIC_OPS, where)
        _typed(least, int, f"{where}.{op}")
    return dict(raw)


def _names(raw: Any, allowed: tuple[str, ...], where: str) -> tuple[str, ...]:
    names = _list(raw, str, where)
    for name in names:
        _check_one_of(name, allowed, where)
    if not names:
        raise RecipeError(f"target {where}: expected at least one of {', '.join(allowed)}")
    return names


def _float_patterns(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the patterns that stay float; an empty list is none, an absent one is all."""
    if raw.get("float_patterns") == []:
        return ()
    return _names(raw.get("float_patterns", list(FLOAT_PATTERNS)), FLOAT_PATTERNS, where)


def _no_gain(raw: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = _list(raw.get("no_gain", []), str, where)
    for name in names:
        _check_one_of(name, tuple(raw["ops"]), where)
    return names


def _island_gain(raw: Any, where: str) -> float | None:
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float) or raw <= 0:
        raise RecipeError(f"target {where}: found {raw!r}, expected a number of dB above 0")
    return float(raw)


def _opsets(raw: Any, opset: int, where: str) -> tuple[int, int]:
    limits = _list(raw, int, where)
    if len(limits) != 2 or not limits[0] <= opset <= limits[1] <= NEWEST_OPSET:
        raise RecipeError(
            f"target {where}: expected [oldest, newest] around its opset {opset} and up to "
            f"{NEWEST_OPSET}, found {list(limits)}"
        )
    return limits[0], limits[1]


def _weight_zero_point(raw: Any, where: str) -> WeightZeroPoint | None:
    if raw is None:
        return None
    _check_keys(raw, {f.name for f in fields(WeightZeroPoint)}, where)
    shift = WeightZeroPoint(**{key: _typed(raw[key], int, f"{where}.{key}") for key in raw})
    if shift.value != -1:  # narrow codes leave -128 free, so int8 has room for a shift by -1 only
        raise RecipeError(f"target {where}.value: expected -1, found {shift.value}")
    return shift


def _stores(raw: Any, where: str) -> dict[str, dict[int, int]]:
    axes: dict[str, dict[int, int]] = {}
    for op, inputs in _typed(raw, dict, where).items():
        for position, axis in _typed(inputs, dict, f"{where}.{op}").items():
            _typed(position, int, f"{where}.{op}")
            _typed(axis, int, f"{where}.{op}.{position}")
        axes[op] = dict(inputs)
    return axes


def _rule(raw: Any, where: str) -> OpRule:
    _check_keys(raw, {f.name for f in fields(OpRule)}, where, required={"form"})
    _check_one_of(raw["form"], FORMS, f"{where}.form")
    _check_one_of(raw.get("output", "quantized"), OUTPUTS, f"{where}.output")
    kinds = {"weight": int, "bias": int, "on_codes": bool, "on_codes_bits": int, "when": dict}
    for key, kind in kinds.items():
        if key in raw:
            _typed(raw[key], kind, f"{where}.{key}")
    if "on_codes_bits" in raw and not raw.get("on_codes"):
        raise RecipeError(f"target {where}.on_codes_bits: of use only with on_codes: true")
    if raw["form"] == "weighted" and "weight" not in raw:
        raise RecipeError(f'target {where}: key "weight" is missing; form weighted needs it')
    lists = {
        key: _list(raw[key], kind, f"{where}.{key}")
        for key, kind in (("inputs", int), ("absorbs", str), ("unfused", str), ("fused_into", str))
        if key in raw
    }
    return OpRule(**{**raw, **lists})


def _spec(raw: Any, where: str) -> QuantSpec:
    required = {"bits", "signed", "symmetric", "granularity"}
    _check_keys(raw, required | {"narrow"}, where, required)
    kinds: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel(0)}
    _check_one_of(raw["granularity"], tuple(kinds), f"{where}.granularity")
    signed, symmetric = (_typed(raw[k], bool, f"{where}.{k}") for k in ("signed", "symmetric"))
    bits = _typed(raw["bits"], int, f"{where}.bits")
    narrow = _typed(raw.get("narrow", True), bool, f"{where}.narrow")
    return QuantSpec(bits, signed, symmetric, kinds[raw["granularity"]], narrow=narrow)


def _typed(raw: Any, kind: type, where: str) -> Any:
    if type(raw) is not kind:
        words = {dict: "a mapping", int: "an integer", str: "a text", bool: "true or false"}
        raise RecipeError(f"target {where}: expected {words[kind]}, found {raw!r}")
    return raw


def _list(raw: Any, kind: type, where: str) -> tuple[Any, ...]:
    if not isinstance(raw, list):
        raise RecipeError(f"target {where}: expected a list, found {raw!r}")
    return tuple(_typed(item, kind, where) for item in raw)


def _check_one_of(raw: Any, allowed: tuple[str, ...], where: str) -> None:
    if raw not in allowed:
        raise RecipeError(
            f'target {where}: "{raw}" is not one of {", ".join(allowed)}'
            f"{suggest(str(raw), allowed)}"
        )


def _check_keys(raw: Any, keys: set[str], where: str, required: set[str] | None = None) -> None:
    if not isinstance(raw, dict):
        raise RecipeError(f"target {where}: expected a mapping, found {type(raw).__name__}")
    for key in raw:
        if key not in keys:
            raise RecipeError(f'target {where}: unknown key "{key}"{suggest(str(key), keys)}')
    for key in sorted((keys if required is None else required) - raw.keys()):
        raise RecipeError(f'target {where}: key "{key}" is missing')
