"""Measure what each site costs, and choose bits and steps by it."""

from qtool.search.auto import Auto
from qtool.steps.step import Step

SEARCHES: dict[str, type[Step]] = {"auto": Auto}
"""Entries of a recipe's ``ptq`` that choose the recipe before the run."""
