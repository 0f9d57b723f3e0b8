"""Runs that measure or choose: sensitivity, mixed precision, automatic repair, sweeps."""
