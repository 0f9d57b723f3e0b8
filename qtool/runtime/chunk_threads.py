"""Compute chunks of samples side by side, each on one thread."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from qtool.runtime.torch_threads import torch_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_chunks(
    compute: Callable[[Item], Result], chunks: Iterable[Item], device: str = "cpu"
) -> Iterator[Result]:
    """Return an iterator over the results of all chunks, in their order.

    A chunk fits in a cache, so its operators are too small to be worth several threads each. As
    many chunks as torch has threads are computed at once, and each result is that of one thread,
    whatever their number. Results can be the chunks of another call. The number of threads is read
    when this is called: while results of another call are read, torch has one.

    Args:
        compute: called in other threads, in inference mode; it does not change what others read.
            An executor and a session of ONNX Runtime can be shared.
        chunks: its arguments.
        device: where it computes; chunks of a GPU are computed one after the other.
    """

    def inferred(chunk: Item) -> Result:
        with torch.inference_mode():
            return compute(chunk)

    threads = torch.get_num_threads() if device == "cpu" else 1
    return _results(inferred, iter(chunks), threads)


def _results(
    compute: Callable[[Item], Result], chunks: Iterator[Item], threads: int
) -> Iterator[Result]:
    """Yield results; torch has one thread until the last one."""
    with torch_threads(1):
        if threads == 1:
            yield from map(compute, chunks)
            return
        pending: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="qtool-chunk") as pool:
            try:
                for chunk in chunks:
                    pending.append(pool.submit(compute, chunk))
                    if len(pending) > threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
