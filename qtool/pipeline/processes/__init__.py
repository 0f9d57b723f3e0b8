"""Share a run among the processes that torchrun started."""
