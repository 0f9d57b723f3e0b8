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


def config_folder(kind: str) -> Path:
    """Where ``configs/<kind>`` lie: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).parents[1]
    inside = here / "configs" / kind
    return inside if inside.is_dir() else here.parent / "configs" / kind


def target_names() -> tuple[str, ...]:
    """Names of the shipped targets."""
    return tuple(sorted(p.stem for p in config_folder("targets").glob("*.yaml")))


def load_target(name: str) -> Target:
    """Read a target by name, or from a path ending in ``.yaml``.

    Raises:
        RecipeError: unknown name, unreadable file, unknown or missing key (names the file and key).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else None
    if path is None:
        path = config_folder("targets") / f"{name}.yaml"
        if not path.is_file():
            known = target_names()
            raise RecipeError(
                f'target: "{name}" is not a target{suggest(name, known)} known: {", ".join(known)};'
                " or give the path of a .yaml file"
            )
    return _target(_whole(_read(path), path), path)


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(f"target {path}: cannot be read: {error}") from error


def _whole(raw: Any, path: Path) -> Any:
    """The file's keys over those of the shipped target that it is ``like``; of that one only."""
    if not isinstance(raw, dict) or "like" not in raw:
        return raw
    base = _typed(raw["like"], str, f"{path}: like")
    _one_of(base, target_names(), f"{path}: like")
    below = _read(config_folder("targets") / f"{base}.yaml")
    if "like" in below:
        raise RecipeError(f'target {path}: like: "{base}" is itself like another; name that one')
    own = ("name", "description", "measured")  # nothing is measured by being like something
    return {
        **{key: value for key, value in below.items() if key not in own},
        **{key: value for key, value in raw.items() if key != "like"},
    }


def _target(raw: Any, path: Path) -> Target:
    _known(
        raw,
        {f.name for f in fields(Target)},
        str(path),
        {f.name for f in fields(Target) if _required(f)},
    )
    for key in ("name", "description", "measured"):
        _typed(raw[key], str, f"{path}: {key}")
    _one_of(raw.get("bias", "int32"), BIASES, f"{path}: bias")
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
        weight_zero_point=_moved(raw.get("weight_zero_point"), f"{path}: weight_zero_point"),
    )


def _required(field_: Field[Any]) -> bool:
    return field_.default is MISSING and field_.default_factory is MISSING


def _scale(raw: Any, where: str) -> str:
    kinds = ("float", "power_of_two", "double_shift", "fixed_point:16", "fixed_point:32")
    _one_of(raw, kinds, where)
    return str(raw)


def _packing(raw: Any, where: str) -> tuple[str, ...]:
    for form in _list(raw, str, where):
        _one_of(form, tuple(PACKING), where)
    return tuple(raw)


def _widths(raw: Any, specs: Mapping[str, QuantSpec], where: str) -> dict[str, tuple[int, int]]:
    _known(raw, set(specs), where, needed=set())
    found = {key: (spec.bits, spec.bits) for key, spec in specs.items()}
    for key, ends in raw.items():
        ends = _list(ends, int, f"{where}.{key}")
        if len(ends) != 2 or not 1 <= ends[0] <= ends[1] <= 16:
            raise RecipeError(
                f"target {where}.{key}: expected [fewest, most] bits within 1 and 16, found {ends}"
            )
        found[key] = (ends[0], ends[1])
    return found


def _dynamic(raw: Any, where: str) -> dict[str, int]:
    for op, least in _typed(raw, dict, where).items():
        _one_of(op, DYNAMIC_OPS, where)
        _typed(least, int, f"{where}.{op}")
    return dict(raw)


def _names(raw: Any, known: tuple[str, ...], where: str) -> tuple[str, ...]:
    found = _list(raw, str, where)
    for name in found:
        _one_of(name, known, where)
    if not found:
        raise RecipeError(f"target {where}: expected at least one of {', '.join(known)}")
    return found


def _opsets(raw: Any, opset: int, where: str) -> tuple[int, int]:
    ends = _list(raw, int, where)
    if len(ends) != 2 or not ends[0] <= opset <= ends[1] <= NEWEST_OPSET:
        raise RecipeError(
            f"target {where}: expected [oldest, newest] around its opset {opset} and up to "
            f"{NEWEST_OPSET}, found {list(ends)}"
        )
    return ends[0], ends[1]


def _moved(raw: Any, where: str) -> WeightZeroPoint | None:
    if raw is None:
        return None
    _known(raw, {f.name for f in fields(WeightZeroPoint)}, where)
    found = WeightZeroPoint(**{key: _typed(raw[key], int, f"{where}.{key}") for key in raw})
    if found.value != -1:  # narrow codes leave one place free, below
        raise RecipeError(f"target {where}.value: expected -1, found {found.value}")
    return found


def _stores(raw: Any, where: str) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for op, inputs in _typed(raw, dict, where).items():
        for position, axis in _typed(inputs, dict, f"{where}.{op}").items():
            _typed(position, int, f"{where}.{op}")
            _typed(axis, int, f"{where}.{op}.{position}")
        found[op] = dict(inputs)
    return found


def _rule(raw: Any, where: str) -> OpRule:
    _known(raw, {f.name for f in fields(OpRule)}, where, needed={"form"})
    _one_of(raw["form"], FORMS, f"{where}.form")
    _one_of(raw.get("output", "quantized"), OUTPUTS, f"{where}.output")
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
        for key, kind in (("inputs", int), ("absorbs", str), ("fused_into", str))
        if key in raw
    }
    return OpRule(**{**raw, **lists})


def _spec(raw: Any, where: str) -> QuantSpec:
    needed = {"bits", "signed", "symmetric", "granularity"}
    _known(raw, needed | {"narrow"}, where, needed)
    kinds: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel(0)}
    _one_of(raw["granularity"], tuple(kinds), f"{where}.granularity")
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


def _one_of(raw: Any, known: tuple[str, ...], where: str) -> None:
    if raw not in known:
        raise RecipeError(
            f'target {where}: "{raw}" is not one of {", ".join(known)}{suggest(str(raw), known)}'
        )


def _known(raw: Any, keys: set[str], where: str, needed: set[str] | None = None) -> None:
    if not isinstance(raw, dict):
        raise RecipeError(f"target {where}: expected a mapping, found {type(raw).__name__}")
    for key in raw:
        if key not in keys:
            raise RecipeError(f'target {where}: unknown key "{key}"{suggest(str(key), keys)}')
    for key in sorted((keys if needed is None else needed) - raw.keys()):
        raise RecipeError(f'target {where}: key "{key}" is missing')
