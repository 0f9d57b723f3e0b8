"""Several processes that train one network together, as torchrun starts them.

The group is torch's own default one: without it every function here is that of a single process.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from qtool.errors import RecipeError

if TYPE_CHECKING:
    import torch

R = TypeVar("R")

# The others wait while the first process calibrates, which may take hours. One that ends is
# noticed at once, by its closed connection; this is only for one that hangs.
PATIENCE = timedelta(days=1)

_STARTED_BY = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Lost(KeyboardInterrupt):
    """Another process ended first and said why: an interruption, so finished epochs are kept."""


def expected() -> tuple[int, int]:
    """(rank, number) of the processes that torchrun says there are, joined or not.

    Raises:
        RecipeError: only a part of what torchrun says is there.
    """
    found = os.environ.get("WORLD_SIZE", "1")
    if found == "1":
        return 0, 1
    missing = [name for name in _STARTED_BY if name not in os.environ]
    if missing:
        raise RecipeError(
            f"found WORLD_SIZE={found}, but not {', '.join(missing)}: start several processes with "
            "`torchrun --nproc-per-node=K -m qtool qat`, or unset WORLD_SIZE"
        )
    return int(os.environ["RANK"]), int(found)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Hold the group that torchrun's processes form; nothing where there is one process.

    Args:
        device: ``cpu`` (gloo) or ``cuda`` (nccl, one device for each process of a machine).

    Raises:
        RecipeError: there are more processes than devices, or they cannot reach each other.
    """
    if expected()[1] == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    kinds = "gloo"
    if device == "cuda":
        here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > devices:
            raise RecipeError(
                f"found {here} processes on a machine with {devices} CUDA devices; start one for "
                "each device: torchrun --nproc-per-node"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        kinds = "cpu:gloo,cuda:nccl"  # objects go from memory to memory
    try:
        dist.init_process_group(kinds, timeout=PATIENCE)
    except RuntimeError as error:
        raise RecipeError(f"the processes of torchrun cannot reach each other: {error}") from error
    try:
        yield
        # Nobody leaves while another may still hear from it: gloo's threads would be torn down
        # under it.
        with _noticing_the_lost():
            dist.barrier()
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is; 0, the first, writes and judges."""
    import torch.distributed as dist

    return dist.get_rank() if count() > 1 else 0


def share(make: Callable[[], R]) -> R:
    """What the first process makes, at every process.

    Raises:
        Lost: another process ended.
    """
    import torch
    import torch.distributed as dist

    if count() == 1:
        return make()
    held: list[R | None] = [make() if rank() == 0 else None]
    with _noticing_the_lost():
        dist.broadcast_object_list(held, 0, device=torch.device("cpu"))
    return held[0]  # type: ignore[return-value]


def share_tensors(tensors: "Iterable[torch.Tensor]") -> None:
    """Overwrite tensors with those of the first process."""
    import torch.distributed as dist

    if count() > 1:
        with _noticing_the_lost():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)


def add_up(tensor: "torch.Tensor") -> "torch.Tensor":
    """The sum over all processes, in place."""
    import torch.distributed as dist

    if count() > 1:
        with _noticing_the_lost():
            dist.all_reduce(tensor)
    return tensor


def gather(tensor: "torch.Tensor") -> "torch.Tensor":
    """The tensors of all processes, stacked: [processes, ...]."""
    import torch
    import torch.distributed as dist

    found = [torch.empty_like(tensor) for _ in range(count())]
    with _noticing_the_lost():
        dist.all_gather(found, tensor)
    return torch.stack(found)


def mean_over_rows(mean: "torch.Tensor", rows: int) -> "torch.Tensor":
    """Means [K] over this process's rows become those over the rows of all processes."""
    if count() == 1:
        return mean
    import torch

    total = add_up(torch.cat([mean * rows, mean.new_full((1,), rows)]))
    return total[:-1] / total[-1]


def widest(limits: "torch.Tensor") -> "torch.Tensor":
    """(lowest, highest) over all processes."""
    if count() == 1:
        return limits
    import torch

    found = gather(limits)
    return torch.stack([found[:, 0].min(), found[:, 1].max()])


def add_up_gradients(
    parameters: "Iterable[torch.nn.Parameter]", loss: "torch.Tensor"
) -> "torch.Tensor":
    """Sum gradients over all processes, in place, in one message; returns the sum of losses.

    Args:
        parameters: those of all processes have gradients, or none have.
        loss: this process's part, rank 0.
    """
    if count() == 1:
        return loss
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = add_up(torch.cat([loss.reshape(1), *(g.reshape(-1) for g in gradients)]))
    parts = flat[1:].split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))
    return flat[0]


@contextmanager
def _noticing_the_lost() -> Iterator[None]:
    """Turn the errors of a broken connection into :class:`Lost`."""
    try:
        yield
    except RuntimeError as error:
        why = str(error).strip().splitlines() or [""]
        raise Lost(f"another process ended ({why[0][:200]})") from error
