"""Measure what each site costs, and choose bits and steps by it."""

from qtool.search.auto import Auto
from qtool.search.haq import Haq
from qtool.search.mixed_precision import BudgetMethod, IntegerProgram

SEARCHES: dict[str, type[Auto]] = {"auto": Auto}
"""Entries of a recipe's ``ptq`` that choose the recipe before the run."""

BUDGET_METHODS: dict[str, type[BudgetMethod]] = {"integer_program": IntegerProgram, "haq": Haq}
"""Entries of a recipe's ``bits.budget.method``."""
