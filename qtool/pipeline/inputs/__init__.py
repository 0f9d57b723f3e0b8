"""The inputs of the model: shapes, batch axes, constants, and states of streams."""
