"""What pydantic cannot say about a recipe: features of later versions, names, options, files."""

from collections.abc import Callable
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from qtool.errors import suggest
from qtool.recipe.choice import _name, check_choice
from qtool.recipe.error_messages import describe
from qtool.recipe.network import FILES, OnnxModel
from qtool.recipe.yaml_loader import Document, Path
from qtool.user_code import is_function_name

if TYPE_CHECKING:
    from qtool.recipe.model import Recipe

Test = Callable[[Any], bool]


def _one_of(*words: str) -> Test:
    return lambda found: found in words


def _holds_weights(found: Any) -> bool:
    return isinstance(found, str) and found.endswith((".pth", ".safetensors", ".ckpt", ".bin"))


def _anything(found: Any) -> bool:
    return True


_LATER: tuple[tuple[Path, Test, str], ...] = (
    (
        ("model",),
        _holds_weights,
        "weights alone are no network; write {torch: module:factory, weights: FILE, "
        "input: {input: [N, 3, 32, 32]}}",
    ),
    (("calibrate", "method"), _one_of("auto"), "auto is not in this version; name a calibrator"),
    (("bits", "budget"), _anything, "mixed precision is not in this version; remove the key"),
)


def check_this_version(document: Document) -> None:
    """Refuse what the recipe format names and this version cannot do, rather than ignore it.

    Raises:
        RecipeError: with the place and what to write instead.
    """
    for path, test, text in _LATER:
        found = _get(document.data, path)
        if found is not None and test(found):
            shown = "" if test is _anything else f"found {describe(found)}; "
            raise document.error(path, shown + text)


def _get(data: Any, path: Path) -> Any:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def check_names(recipe: "Recipe", document: Document) -> None:
    """Check every name against its table, and every option against its entry.

    Raises:
        RecipeError: unknown name or option, with the closest one that exists; gates that need data.
    """
    check_choice(recipe.calibrate.method, "calibrators", ("calibrate", "method"), document)
    check_choice(recipe.bits.scheme, "schemes", ("bits", "scheme"), document)
    if recipe.bits.scale is not None:
        check_choice(recipe.bits.scale, "scales", ("bits", "scale"), document)
    _scheme(recipe, document)
    if recipe.qat is not None:
        check_choice(recipe.qat.quantizer, "quantizers", ("qat", "quantizer"), document)
    for i, step in enumerate(recipe.ptq):
        check_choice(step, "ptq", ("ptq", i), document)
    for i, name in enumerate(recipe.rewrite or ()):
        _name(name, "rewrites", ("rewrite", i), document)
    if not recipe.target.endswith((".yaml", ".yml")):
        _name(recipe.target, "targets", ("target",), document)
    if recipe.evaluate is not None:
        metric = recipe.evaluate.metric
        if metric is not None and not is_function_name(metric):
            _name(metric, "metrics", ("evaluate", "metric"), document)
    elif recipe.gates.max_drop is not None:
        raise document.error(
            ("gates", "max_drop"), "needs accuracy, but the recipe has no `evaluate`; add it"
        )
    for pattern in recipe.bits.layers:
        _pattern(pattern, document)


def _scheme(recipe: "Recipe", document: Document) -> None:
    """Refuse a scheme whose values do not go with the bits asked for."""
    name = recipe.bits.scheme.name
    wanted = {"binary": 1, "ternary": 2}.get(name)
    asked = {recipe.bits.weights, *(layer.weights for layer in recipe.bits.layers.values())}
    if wanted is not None and not asked <= {wanted, 8, "float", None}:
        raise document.error(
            ("bits", "scheme"),
            f"{name} weights take {wanted} bit{'s' * (wanted > 1)}; write weights: {wanted}",
        )
    if name != "uniform" and not asked - {8, "float", None}:
        raise document.error(
            ("bits", "scheme"),
            f"{name} is for layers of less than 8 bits, and there are none; set bits.weights",
        )


def _pattern(pattern: str, document: Document) -> None:
    kind, _, rest = pattern.partition(":")
    if pattern in ("first", "last") or (kind in ("name", "op") and rest):
        return
    hint = suggest(pattern, ("first", "last"))
    raise document.error(
        ("bits", "layers", pattern),
        f'not a layer pattern; expected first, last, "name:GLOB" or "op:TYPE"{hint}',
    )


def check_paths(recipe: "Recipe", document: Document) -> None:
    """Check that every file and folder the recipe names is there.

    Raises:
        RecipeError: with the place and the absolute path that was looked for.
    """
    wanted = _model_paths(recipe)
    if recipe.target.endswith((".yaml", ".yml")):
        wanted.append((("target",), recipe.target))
    for name, section in (
        ("calibrate", recipe.calibrate),
        ("evaluate", recipe.evaluate),
        ("qat", recipe.qat),
    ):
        if section is None:
            continue
        wanted += [((name, key), getattr(section, key)) for key in ("images", "labels", "code")]
        for key in ("arrays", "text", "wav"):
            given = getattr(section, key)
            files = ("path", "tokenizer") if key == "text" else ("path",)
            wanted += [((name, key, file), getattr(given, file)) for file in files if given]
        if isinstance(section.preprocess, str) and FilePath(section.preprocess).is_absolute():
            wanted.append(((name, "preprocess"), section.preprocess))
    for path, file in wanted:
        if file is not None and not FilePath(file).exists():
            raise document.error(path, f'nothing at "{file}"; paths are relative to the recipe')
    for path, file in _model_paths(recipe):
        if path[-1] != "code" and FilePath(str(file)).is_dir():
            raise document.error(path, f'"{file}" is a folder; expected a file')


def _model_paths(recipe: "Recipe") -> list[tuple[Path, str | None]]:
    """The files and folders the model is made of, with their keys."""
    model = recipe.model
    if isinstance(model, FilePath):
        return [(("model",), str(model))]
    if isinstance(model, OnnxModel):
        return [(("model", "onnx"), str(model.onnx))]
    file = model.torch if model.torch.endswith(FILES) else None
    named = {"torch": file, "weights": model.weights, "code": model.code}
    return [(("model", k), str(v)) for k, v in named.items() if v is not None]
