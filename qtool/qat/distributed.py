"""One run by several processes, as torchrun starts them.

The group is torch's default one. Without it every function here does what a single process needs.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from qtool.errors import RecipeError

if TYPE_CHECKING:
    import torch

R = TypeVar("R")

# The others wait while the first process calibrates, which may take hours. A process that ends is
# detected at once, by its closed connection; the timeout is only for one that hangs.
GROUP_TIMEOUT = timedelta(days=1)

_alone = False  # inside of alone()

_TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLost(KeyboardInterrupt):
    """Another process ended and reports why; an interruption, so the checkpoint stays valid."""


@dataclass(frozen=True)
class BatchPart:
    """The rows of a batch that one process trains on.

    Attributes:
        size: rows of the whole batch.
        first, step: this process has the rows first, first + step, first + 2 step ...
    """

    size: int
    first: int = 0
    step: int = 1

    @property
    def rows(self) -> slice:
        """This process's rows."""
        return slice(self.first, None, self.step)

    def of(self, values: "torch.Tensor") -> "torch.Tensor":
        """Select this process's part of values [..., size] for all rows."""
        return values[..., self.rows]

    @property
    def count(self) -> int:
        """Number of rows of this process."""
        return len(range(self.size)[self.rows])


def expected() -> tuple[int, int]:
    """Return (rank, number of processes) from torchrun's variables, before any group exists.

    Raises:
        RecipeError: some of torchrun's variables are missing.
    """
    world_size = os.environ.get("WORLD_SIZE", "1")
    if world_size == "1":
        return 0, 1
    missing = [name for name in _TORCHRUN_VARIABLES if name not in os.environ]
    if missing:
        raise RecipeError(
            f"found WORLD_SIZE={world_size}, but not {', '.join(missing)}: start several "
            "processes with `torchrun --nproc-per-node=K -m qtool ptq` (or qat), or unset "
            "WORLD_SIZE"
        )
    return int(os.environ["RANK"]), int(world_size)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the group of torchrun's processes, and leave it at the end; do nothing in one process.

    Args:
        device: ``cpu`` (gloo) or ``cuda`` (nccl, one device for each process on a machine).

    Raises:
        RecipeError: there are more processes than devices, or they cannot reach each other.
    """
    if expected()[1] == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if device == "cuda":
        processes, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if processes > devices:
            raise RecipeError(
                f"found {processes} processes on a machine with {devices} CUDA devices; start "
                "one for each device: torchrun --nproc-per-node"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"  # gloo broadcasts Python objects
    try:
        dist.init_process_group(backend, timeout=GROUP_TIMEOUT)
    except RuntimeError as error:
        raise RecipeError(f"the processes of torchrun cannot reach each other: {error}") from error
    try:
        yield
        # All leave together: gloo's threads must not end while another process still receives
        # from them.
        with _detect_lost_process():
            dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Let this process do what is inside as a single one does, whatever the group."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def count() -> int:
    """Return the number of processes that train together."""
    import torch.distributed as dist

    if _alone:
        return 1
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process; 0, the first, writes files and evaluates."""
    import torch.distributed as dist

    return dist.get_rank() if count() > 1 else 0


def share(make: Callable[[], R]) -> R:
    """Call ``make`` in the first process and return its result in every process.

    Args:
        make: called in the first process alone; its result must be picklable.

    Raises:
        ProcessLost: another process ended.
    """
    import torch
    import torch.distributed as dist

    if count() == 1:
        return make()
    results: list[R | None] = [make() if rank() == 0 else None]
    with _detect_lost_process():
        dist.broadcast_object_list(results, 0, device=torch.device("cpu"))
    return results[0]  # type: ignore[return-value]


def gather(part: R) -> list[R]:
    """Return the parts of all processes, by rank, in the first process; nothing in the others.

    Args:
        part: of this process; picklable.

    Raises:
        ProcessLost: another process ended.
    """
    import torch.distributed as dist

    if count() == 1:
        return [part]
    parts: list[R | None] | None = [None] * count() if rank() == 0 else None
    with _detect_lost_process():
        dist.gather_object(part, parts, 0)
    return [] if parts is None else parts  # type: ignore[return-value]


def broadcast_tensors(tensors: "Iterable[torch.Tensor]") -> None:
    """Overwrite tensors, in place, with those of the first process."""
    import torch.distributed as dist

    if count() > 1:
        with _detect_lost_process():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


def all_reduce_sum(tensor: "torch.Tensor") -> "torch.Tensor":
    """Sum a tensor over all processes, in place, and return it."""
    import torch.distributed as dist

    if count() > 1:
        with _detect_lost_process():
            dist.all_reduce(tensor)
    return tensor


def all_gather(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return the tensors of all processes, stacked: [processes, ...]."""
    import torch
    import torch.distributed as dist

    tensors = [torch.empty_like(tensor) for _ in range(count())]
    with _detect_lost_process():
        dist.all_gather(tensors, tensor)
    return torch.stack(tensors)


def mean_over_rows(mean: "torch.Tensor", rows: int) -> "torch.Tensor":
    """Combine means over this process's rows to those over the rows of all processes.

    Args:
        mean: [K].
        rows: number of this process's rows.
    """
    if count() == 1:
        return mean
    import torch

    total = all_reduce_sum(torch.cat([mean * rows, mean.new_full((1,), rows)]))
    return total[:-1] / total[-1]


def widest_limits(limits: "torch.Tensor") -> "torch.Tensor":
    """Return the lowest and highest of limits [2] over all processes."""
    if count() == 1:
        return limits
    import torch

    parts = all_gather(limits)
    return torch.stack([parts[:, 0].min(), parts[:, 1].max()])


def all_reduce_gradients(
    parameters: "Iterable[torch.nn.Parameter]", loss: "torch.Tensor"
) -> "torch.Tensor":
    """Sum gradients over all processes, in place, in one message; return the sum of losses.

    Args:
        parameters: the same ones have gradients in all processes.
        loss: this process's part, rank 0.
    """
    if count() == 1:
        return loss
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = all_reduce_sum(torch.cat([loss.reshape(1), *(g.reshape(-1) for g in gradients)]))
    parts = flat[1:].split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
    return flat[0]


@contextmanager
def _detect_lost_process() -> Iterator[None]:
    """Turn the errors of a broken connection into :class:`ProcessLost`."""
    try:
        yield
    except RuntimeError as error:
        why = str(error).strip().splitlines() or [""]
        raise ProcessLost(f"another process ended ({why[0][:200]})") from error
