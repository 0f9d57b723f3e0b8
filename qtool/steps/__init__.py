"""Define what a step of a run reads and returns, and how it is timed, cached and guarded."""
