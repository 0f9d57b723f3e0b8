"""Positional arguments and short options that stand for keys of the recipe."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qtool.errors import RecipeError

if TYPE_CHECKING:
    from qtool.recipe.overrides import Override

RECIPES = (".yaml", ".yml")

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[RECIPE | MODEL DATA]",
        help="A recipe, or a model and its data, instead of --recipe, --model and --data.",
        show_default=False,
    ),
]
Bits = Annotated[
    str | None,
    typer.Option(
        "--bits",
        metavar="W[/A]",
        help="Bits of weights, and of activations: --bits 4, --bits 4/8, --bits 4/float.",
    ),
]
Count = Annotated[
    int | None, typer.Option("--count", metavar="N", min=1, help="Calibration samples at most.")
]


@dataclass(frozen=True)
class Sources:
    """The files that a recipe is made of, as the command line names them."""

    recipe: Path | None = None
    model: Path | None = None
    data: Path | None = None


def named_files(files: list[Path] | None, options: Sources) -> Sources:
    """Return recipe, model and data from positional arguments, or else from options.

    Raises:
        RecipeError: the arguments are neither one recipe nor a model and data, or an option names
            the same file.
    """
    if not files:
        return options
    if files[0].suffix in RECIPES and len(files) == 1:
        named = Sources(recipe=files[0], model=options.model, data=options.data)
        twice = options.recipe
    elif files[0].suffix not in RECIPES and len(files) == 2:
        named = Sources(options.recipe, *files)
        twice = options.model or options.data
    else:
        shown = " ".join(map(str, files))
        raise RecipeError(f"found {shown}, expected a recipe (.yaml), or a model and its data")
    if twice is not None:
        raise RecipeError(f"found {twice} in an option and {files[0]} besides; name it once")
    return named


def overrides(
    bits: str | None,
    count: int | None,
    settings: list[str] | None,
    memory: str | None = None,
    epochs: int | None = None,
) -> list["str | Override"]:
    """Return options that stand for keys of the recipe as overrides of it; the last one wins.

    These are ``--bits``, ``--count``, ``--memory``, ``--epochs`` and ``--set``.

    Raises:
        RecipeError: ``--bits`` is not of the form W or W/A.
    """
    from qtool.recipe.overrides import Override

    words: list[str | Override] = []
    if bits is not None:
        if not re.fullmatch(r"(\d+|float)(/(\d+|float|dynamic))?", bits):
            raise RecipeError(f"--bits: found {bits}, expected 4, or 4/8 (weights/activations)")
        for key, width in zip(("weights", "activations"), bits.split("/"), strict=False):
            words.append(Override(f"bits.{key}={width}", f"--bits {bits}"))
    for option, key, value in (
        ("--count", "calibrate.count", count),
        ("--memory", "memory", memory),
        ("--epochs", "qat.epochs", epochs),
    ):
        if value is not None:
            words.append(Override(f"{key}={value}", f"{option} {value}"))
    return [*words, *(settings or ())]
