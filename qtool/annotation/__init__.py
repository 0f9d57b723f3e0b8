"""Apply a target's rules to a graph: choose the quantized values and the integer nodes."""
