"""Learn rounding and step sizes block by block, against the float network's block outputs."""
