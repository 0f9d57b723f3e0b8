"""Compose operators from the elementwise operators that exporters write for them."""
