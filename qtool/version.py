"""The version of qtool; written into reports, files and cache keys."""

__version__ = "0.1.0"
