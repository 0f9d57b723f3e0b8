"""Estimates of a run before it starts: bytes of its file, seconds, memory."""
