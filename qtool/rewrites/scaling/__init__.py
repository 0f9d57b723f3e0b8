"""Rewrites that move scale factors between layers and keep the float function."""
