"""``qtool list``: the names that a recipe can hold."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qtool.cli.console.exits import exit_codes, print_result
from qtool.errors import RecipeError, suggest

if TYPE_CHECKING:
    from qtool.recipe.registry import Kind


def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="One kind; all of them if left out.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One entry: its help and options.")
    ] = None,
) -> None:
    """List the names that a recipe can hold, by kind; or the help and options of one."""
    with exit_codes():
        from qtool.recipe.registry import KINDS

        if kind is not None and kind not in KINDS:
            raise RecipeError(
                f'list: found "{kind}", expected one of {", ".join(KINDS)}{suggest(kind, KINDS)}'
            )
        if kind is not None and name is not None:
            print_result(_entry_text(KINDS[kind], name))
        else:
            kinds = [KINDS[kind]] if kind else KINDS.values()
            print_result("\n\n".join(_kind_text(each) for each in kinds))


def _kind_text(kind: "Kind[Any]") -> str:
    """Return the names of one kind with a line about each."""
    from qtool.recipe.registry import describe

    names = sorted(kind.table())
    if not names:
        return f"{kind.name}\n  (none in this version)"
    width = max(map(len, names))
    lines = (f"  {name:<{width}}  {describe(kind, name).summary}" for name in names)
    return "\n".join([kind.name, *lines])


def _entry_text(kind: "Kind[Any]", name: str) -> str:
    """Return the whole help of one entry."""
    from qtool.recipe.registry import describe

    names = sorted(kind.table())
    if name not in names:
        expected = ", ".join(names) or "nothing in this version"
        raise RecipeError(
            f'list {kind.name}: found "{name}", expected one of {expected}{suggest(name, names)}'
        )
    entry = describe(kind, name)
    lines = [f"{name} ({kind.name})", "", entry.text]
    if entry.options:
        lines += ["", "Options:"]
        width = max(len(option.name) for option in entry.options)
        type_width = max(len(option.type) for option in entry.options)
        lines += [
            f"  {o.name:<{width}}  {o.type:<{type_width}}  default: {o.default}"
            for o in entry.options
        ]
    return "\n".join(lines)
