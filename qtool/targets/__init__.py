"""Read what a runtime executes in integers from ``configs/targets/*.yaml``."""
