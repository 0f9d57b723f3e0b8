"""Rewrites that fold constant arithmetic into the weights and biases of layers."""
