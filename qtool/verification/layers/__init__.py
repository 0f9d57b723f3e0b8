"""Measure and describe the layers of a plan for the report."""
