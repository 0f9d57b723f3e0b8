"""``qtool schema``: the recipe's JSON schema."""

import json

from qtool.cli.console.exits import exit_codes, print_result


def schema() -> None:
    """Print the recipe's JSON schema, for editors that complete and check YAML."""
    with exit_codes():
        from qtool.recipe.json_schema import recipe_schema

        print_result(json.dumps(recipe_schema(), indent=2))
