"""Findings about a run in words: from measurements, each with the recipe lines that act on it."""
