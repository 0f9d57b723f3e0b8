"""List classes and samples for which float model and file answer differently."""
