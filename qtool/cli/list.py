"""``qtool list``: what a recipe can name."""

from typing import Annotated

import typer

from qtool.cli.exits import exit_codes, print_result
from qtool.errors import RecipeError, suggest


def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="One kind; all of them if left out.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One entry: its help and options.")
    ] = None,
) -> None:
    """List calibrators, ptq steps, rewrites, targets, metrics, readers and preprocess settings."""
    with exit_codes():
        from qtool.recipe.registry import KINDS

        if kind is not None and kind not in KINDS:
            raise RecipeError(
                f'list: found "{kind}", expected one of {", ".join(KINDS)}{suggest(kind, KINDS)}'
            )
        if kind is not None and name is not None:
            print_result(_entry(kind, name))
        else:
            print_result("\n\n".join(_kind(k) for k in ([kind] if kind else KINDS)))


def _kind(kind: str) -> str:
    """The names of one kind with a line about each."""
    from qtool.recipe.registry import KINDS, describe

    names = sorted(KINDS[kind]())
    if not names:
        return f"{kind}\n  (none in this version)"
    wide = max(map(len, names))
    return "\n".join([kind, *(f"  {n:<{wide}}  {describe(kind, n).summary}" for n in names)])


def _entry(kind: str, name: str) -> str:
    """The whole help of one entry."""
    from qtool.recipe.registry import KINDS, describe

    names = sorted(KINDS[kind]())
    if name not in names:
        known = ", ".join(names) or "nothing in this version"
        raise RecipeError(
            f'list {kind}: found "{name}", expected one of {known}{suggest(name, names)}'
        )
    found = describe(kind, name)
    lines = [f"{name} ({kind})", "", found.text]
    if found.options:
        lines += ["", "Options:"]
        wide = max(len(option.name) for option in found.options)
        kinds = max(len(option.type) for option in found.options)
        lines += [
            f"  {o.name:<{wide}}  {o.type:<{kinds}}  default: {o.default}" for o in found.options
        ]
    return "\n".join(lines)
