"""Quantization primitives: grids, codes, rounding and the plan. Numpy only; torch tensors pass."""
