"""Measure what each site costs, and choose bits and steps by it."""
