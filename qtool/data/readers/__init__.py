"""Read samples: images, arrays, text, recordings, or a Python function."""
