"""Run folders: the choice of one, its lock, and the files in it."""
