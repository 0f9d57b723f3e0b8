"""Set the number of threads that torch computes with."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads until the block ends.

    On single samples several threads only wait; and sums depend on their number.

    Args:
        count: of the threads.
    """
    import torch  # options of a run are read without it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
