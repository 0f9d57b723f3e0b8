"""Augment training images with torch alone."""
