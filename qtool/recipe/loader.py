"""Load recipes from files, command-line options and keywords."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qtool.errors import RecipeError
from qtool.recipe.error_messages import explain
from qtool.recipe.model import Recipe
from qtool.recipe.overrides import Override, make_absolute, override, put, use_data
from qtool.recipe.validation import check_names, check_paths, check_this_version
from qtool.recipe.yaml_loader import Document, parse
from qtool.user_code import is_function_name, torch_network_needs


def load_recipe(
    path: str | Path,
    overrides: Sequence[str | Override] = (),
    *,
    model: str | Path | None = None,
    data: str | Path | None = None,
) -> Recipe:
    """Read a recipe file; command-line options win over it.

    Args:
        path: the YAML file; paths in it are relative to its folder.
        overrides: ``key.key=value`` with a YAML value, as in the recipe; ``null`` removes the key.
        model: replaces the recipe's model; relative to the working directory.
        data: replaces the data of calibrate and evaluate; relative to the working directory.

    Raises:
        RecipeError: anything wrong, with file, line, key and a remedy.
    """
    name = str(path)
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(
            f"{name}: cannot read the recipe ({error.strerror}); expected a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{name}: byte {error.start} is not UTF-8; save it as UTF-8") from error
    document = parse(text, name)
    if not isinstance(document.data, dict):
        shown = "nothing" if document.data is None else f"a {type(document.data).__name__}"
        raise document.error((), f"found {shown}, expected keys: at least model and calibrate")
    return _resolve(document, Path(path).absolute().parent, overrides, model, data)


def recipe_from_options(
    model: str | Path, data: str | Path, overrides: Sequence[str | Override] = ()
) -> Recipe:
    """Return the default recipe: calibrate on one part of the data, evaluate on another.

    Args:
        model: the float ONNX file, or a .pt2 or .pt file, relative to the working directory.
        data: a file or a folder, divided as ``data_folder`` says.
        overrides: as for :func:`load_recipe`.

    Raises:
        RecipeError: as :func:`load_recipe` does, naming the option.
    """
    document = Document({"calibrate": {}, "evaluate": {}}, {}, "command line")
    return _resolve(document, Path.cwd(), overrides, model, data)


def _resolve(
    document: Document,
    folder: Path,
    overrides: Sequence[str | Override],
    model: str | Path | None,
    data: str | Path | None,
) -> Recipe:
    if model is not None:
        _check_is_file(model)
        put(document, ("model",), os.path.abspath(model), f"--model {model}")
    if data is not None:
        use_data(document, Path(os.path.abspath(data)), f"--data {data}")
    for each in overrides:
        override(document, Override(each) if isinstance(each, str) else each)
    return _validated(document, folder)


def _check_is_file(model: str | Path) -> None:
    """Refuse a torch function in place of a file: it needs more than its name.

    Raises:
        RecipeError: says what a recipe has to say of it.
    """
    if is_function_name(str(model)) and not Path(model).exists():
        raise RecipeError(
            f"--model {model}: found a function that makes a torch network, expected a file; "
            + torch_network_needs(str(model), "FILE.safetensors")
        )


def recipe_from_keywords(data: dict[str, Any], place: str, folder: Path, *, files: bool) -> Recipe:
    """Read a recipe from keywords, without a file.

    Args:
        data: as YAML would hold it; changed in place.
        place: named in errors.
        folder: what paths are relative to.
        files: check that every path exists; False where one stands for data in memory.

    Raises:
        RecipeError: anything wrong, with the key and a remedy.
    """
    return _validated(Document(data, {}, place), folder, files)


def _validated(document: Document, folder: Path, files: bool = True) -> Recipe:
    make_absolute(document.data, folder)
    check_this_version(document)
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        raise explain(error, document, Recipe) from error
    check_names(recipe, document)
    if files:
        check_paths(recipe, document)
    recipe._document = document
    return recipe
