"""Compute the grids of activations and weights from the calibration data."""
