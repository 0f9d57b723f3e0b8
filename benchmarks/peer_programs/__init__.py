"""Programs that quantize with another tool, each run by the interpreter that has the tool."""
