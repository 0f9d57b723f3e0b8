"""qtool: quantize neural networks, and prove what the file on disk does."""

__version__ = "0.1.0"
