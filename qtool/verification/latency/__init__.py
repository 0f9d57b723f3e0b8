"""Timing of files in every runtime, on this machine and on others."""
