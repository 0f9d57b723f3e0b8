"""Define quantization: grids, codes, the plan, rounding. Numpy only; torch tensors pass through."""
