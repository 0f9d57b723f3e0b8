"""Checks of what a run reads: gates against what will be measured, preprocessing by accuracy."""
