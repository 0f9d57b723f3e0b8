"""Sections of a recipe: their keys, types and checks."""
