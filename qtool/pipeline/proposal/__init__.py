"""Propose a recipe for a model and a folder of data, for ``qtool init``."""
