"""Latency of both files in the runtimes and on the machine that the recipe names."""
