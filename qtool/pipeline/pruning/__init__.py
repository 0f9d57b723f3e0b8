"""The pruning section of a recipe: checks, the step that masks weights, shrinking of the graph."""
