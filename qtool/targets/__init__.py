"""Targets: descriptions of the integer operators of a runtime, from ``configs/targets``."""
