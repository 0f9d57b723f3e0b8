"""Read recipes: YAML to checked values, errors with file and line."""
