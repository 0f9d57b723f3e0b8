"""Apply a target's rules to a graph: which values get a grid, which nodes run in integers."""
