"""Compute accuracy from outputs and labels, with confidence intervals."""
