"""Compose the stages of a run from all other packages."""
