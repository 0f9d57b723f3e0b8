"""Checks of a recipe beyond keys and types: features of later versions, names, options, files."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

from qtool.data import READERS, DataSection
from qtool.errors import KeyPath, suggest
from qtool.recipe.choice import Choice, check_choice, find_entry
from qtool.recipe.error_messages import describe
from qtool.recipe.registry import DATA_SECTIONS, ITEM, KINDS, NAME, YAML_FILE, Kind, Place
from qtool.recipe.sections.gates import ACCURACY_GATES
from qtool.recipe.sections.network import FILES, OnnxModel
from qtool.recipe.sections.pruning import AMOUNTS, Pruning
from qtool.recipe.yaml_loader import Document

if TYPE_CHECKING:
    from qtool.recipe.model import Bits, Recipe
    from qtool.weights.scheme import WeightScheme

Test = Callable[[Any], bool]


def _holds_weights(value: Any) -> bool:
    return isinstance(value, str) and value.endswith((".pth", ".safetensors", ".ckpt", ".bin"))


_LATER: tuple[tuple[KeyPath, Test, str], ...] = (
    (
        ("model",),
        _holds_weights,
        "weights alone are no network; write {torch: module:factory, weights: FILE, "
        "input: {input: [N, 3, 32, 32]}}",
    ),
)


def check_this_version(document: Document) -> None:
    """Refuse keys of the recipe format that this version does not implement.

    Args:
        document: plain data, not yet checked.

    Raises:
        RecipeError: with the place and what to write instead.
    """
    for path, test, text in _LATER:
        value = _get(document.data, path)
        if value is not None and test(value):
            raise document.error(path, f"found {describe(value)}; {text}")


def _get(data: Any, path: KeyPath) -> Any:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return None
        data = data[key]
    return data


def check_names(recipe: "Recipe", document: Document) -> None:
    """Check every name against its table, and every option against its entry.

    Args:
        recipe: its keys and types are valid.
        document: the data it was read from, for messages.

    Raises:
        RecipeError: unknown name or option, with the closest one that exists; gates that need data.
    """
    for kind in KINDS.values():
        for place in kind.at:
            for path, value in _values_at(recipe, place):
                if isinstance(value, Choice):
                    check_choice(value, kind, path, document)
                elif isinstance(value, str) and not _is_alternative(value, kind):
                    find_entry(value, kind, path, document)
    _check_data(recipe, document)
    _check_scheme(recipe.bits, document)
    if recipe.pruning is not None:
        _check_pruning(recipe.pruning, document)
    if recipe.calibrate.weights is not None and recipe.bits.scheme.name != "uniform":
        raise document.error(
            ("calibrate", "weights"),
            f"ranges are estimated for equal steps, found scheme: {recipe.bits.scheme.name}; "
            "leave out one of the two",
        )
    for name in ACCURACY_GATES:
        if recipe.evaluate is None and getattr(recipe.gates, name) is not None:
            raise document.error(
                ("gates", name), "needs accuracy, but the recipe has no `evaluate`; add it"
            )
    for pattern in recipe.bits.layers:
        _check_pattern(("bits", "layers", pattern), document)


def _values_at(value: Any, place: Place, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the values at a place of the recipe with their keys; absent ones are left out.

    Names that are keys themselves are left out too: the model of their section checks them.
    """
    if value is None or place[:1] == (NAME,):
        return
    if not place:
        yield path, value
    elif place[0] == ITEM:
        for index, item in enumerate(value):
            yield from _values_at(item, place[1:], (*path, index))
    else:
        yield from _values_at(getattr(value, place[0]), place[1:], (*path, place[0]))


def _is_alternative(text: str, kind: Kind[Any]) -> bool:
    return kind.alternative is not None and kind.alternative.accepts(text)


def _check_data(recipe: "Recipe", document: Document) -> None:
    """Refuse synthetic samples where real ones are needed, and recipes without any."""
    widths = {
        recipe.bits.activations,
        *(layer.activations for layer in recipe.bits.layers.values()),
    }
    if "calibrate" not in recipe.model_fields_set and not widths & {"float", "dynamic"}:
        raise document.error((), 'the key "calibrate" is missing; add it')
    for name in ("evaluate", "qat"):
        section: DataSection | None = getattr(recipe, name)
        if section is not None and READERS[section.reader].synthetic:
            raise document.error(
                (name, section.reader),
                "made-up samples have no labels and show nothing; name real data, or leave the "
                "section out",
            )


def _check_scheme(bits: "Bits", document: Document) -> None:
    """Refuse a scheme whose values do not go with the requested bits."""
    name = bits.scheme.name
    scheme: type[WeightScheme] = KINDS["schemes"].table()[name]
    width = scheme.fixed_bits
    # Layers at 8 bits or float never use the scheme; None: the target's own width, mostly 8.
    requested = {bits.weights, *(layer.weights for layer in bits.layers.values())}
    requested -= {8, "float", None}
    if width is not None and not requested <= {width}:
        raise document.error(
            ("bits", "scheme"),
            f"{name} weights take {width} bit{'s' * (width > 1)}; write weights: {width}",
        )
    if scheme.low_bit_only and not requested:
        raise document.error(
            ("bits", "scheme"),
            f"{name} is for layers of less than 8 bits, and there are none; set bits.weights",
        )


def _check_pruning(section: Pruning, document: Document) -> None:
    """Refuse keys of the pruning section that do not go together."""
    named = [name for name in AMOUNTS if getattr(section, name) is not None]
    if len(named) != 1:
        listed = " and ".join(named) or "none"
        raise document.error(
            ("pruning",), f"found {listed}, expected exactly one of {', '.join(AMOUNTS)}"
        )
    for pattern, share in section.layers.items():
        _check_pattern(("pruning", "layers", pattern), document)
        if share and section.sparsity is None:
            why = "0 leaves a layer as it is; a share of its own goes with sparsity alone"
            raise document.error(
                ("pruning", "layers", pattern),
                f"found {share:g} with {named[0]}, expected 0: {why}",
            )
    if section.schedule is not None and section.sparsity is None:
        why = "a sparsity alone grows; leave schedule out"
        raise document.error(("pruning", "schedule"), f"found it with {named[0]}: {why}")


def _check_pattern(key: KeyPath, document: Document) -> None:
    pattern = str(key[-1])
    kind, _, rest = pattern.partition(":")
    if pattern in ("first", "last") or (kind in ("name", "op") and rest):
        return
    hint = suggest(pattern, ("first", "last"))
    raise document.error(
        key,
        f'not a layer pattern; expected first, last, "name:GLOB" or "op:TYPE"{hint}',
    )


def check_paths(recipe: "Recipe", document: Document) -> None:
    """Check that every file and folder the recipe names is there.

    Args:
        recipe: its paths are absolute.
        document: the data it was read from, for messages.

    Raises:
        RecipeError: with the place and the absolute path that was looked for.
    """
    for path, file in named_files(recipe):
        if not os.path.exists(file):
            raise document.error(path, f'nothing at "{file}"; paths are relative to the recipe')
        if path[0] == "model" and path[-1] != "code" and os.path.isdir(file):
            raise document.error(path, f'"{file}" is a folder; expected a file')


def named_files(recipe: "Recipe") -> list[tuple[KeyPath, str]]:
    """Return every file and folder that a recipe names, with its key.

    Args:
        recipe: its paths are absolute.
    """
    paths: list[tuple[KeyPath, str | None]] = [*_model_paths(recipe)]
    if YAML_FILE.accepts(recipe.target):
        paths.append((("target",), recipe.target))
    for name in DATA_SECTIONS:
        section: DataSection | None = getattr(recipe, name)
        if section is None:
            continue
        paths += [((name, key), getattr(section, key)) for key in ("labels", "code")]
        if isinstance(section.classes, str):
            paths.append(((name, "classes"), section.classes))
        key, options = section.reader, getattr(section, section.reader)
        if isinstance(options, str):
            paths.append(((name, key), options))
        else:
            paths += [((name, key, file), getattr(options, file)) for file in READERS[key].paths]
        if isinstance(section.preprocess, str) and FilePath(section.preprocess).is_absolute():
            paths.append(((name, "preprocess"), section.preprocess))
    return [(path, file) for path, file in paths if file is not None]


def _model_paths(recipe: "Recipe") -> list[tuple[KeyPath, str]]:
    """Return the files and folders the model is made of, with their keys."""
    model = recipe.model
    if isinstance(model, FilePath):
        return [(("model",), str(model))]
    if isinstance(model, OnnxModel):
        return [(("model", "onnx"), str(model.onnx))]
    file = model.torch if model.torch.endswith(FILES) else None
    files = {"torch": file, "weights": model.weights, "code": model.code}
    return [(("model", k), str(v)) for k, v in files.items() if v is not None]
