"""Second-order rounding: covariances of layer inputs and the solvers that read them."""
