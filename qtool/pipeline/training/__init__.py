"""Training as a stage of a run: its settings, checks and worker processes."""
