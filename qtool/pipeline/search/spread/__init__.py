"""Spread the scans and trials of a search over processes."""
