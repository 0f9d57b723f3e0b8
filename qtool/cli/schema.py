"""``qtool schema``: the recipe's JSON schema, or the reference that is made from it."""

import json
from typing import Annotated

import typer

from qtool.cli.console.exits import exit_codes, print_result


def schema(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the reference of all keys and names instead.")
    ] = False,
) -> None:
    """Print the recipe's JSON schema, for editors that complete and check YAML."""
    with exit_codes():
        if markdown:
            from qtool.recipe.reference import recipe_reference

            print_result(recipe_reference().rstrip("\n"))
        else:
            from qtool.recipe.json_schema import recipe_schema

            print_result(json.dumps(recipe_schema(), indent=2))
