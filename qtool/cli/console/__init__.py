"""Pieces that all commands share: options, exit codes and progress on a terminal."""
