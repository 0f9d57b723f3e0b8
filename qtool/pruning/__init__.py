"""Set weights to zero by masks, one file a method, or remove whole channels."""
