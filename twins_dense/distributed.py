"""Process groups for commands that torchrun starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

# Long, because one process may finish long before another.
_TIMEOUT = timedelta(days=7)


def is_first_process() -> bool:
    """Return whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined_processes() -> Iterator[tuple[int, int]]:
    """Join the group of processes if torchrun has started several, and yield the rank and the number of processes."""
    import torch.distributed as dist  # here, because the command line imports this module before torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=_TIMEOUT)  # on the CPU, because only small values are exchanged
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process of the group has called this function."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()


def any_process(flag: bool) -> bool:
    """Return whether a flag is set in any process of the group, which all of them have to call together."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized() or dist.get_world_size() == 1:
        return flag
    value = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def from_first_process(name: str, value: str) -> str:
    """Return the value that the first of the processes started by torchrun has passed.

    Only torchrun's store is used, because a process can join a group only once.

    Args:
        name: Name of the value, which must not be used twice in one run.
        value: The value of this process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return value
    from torch.distributed import rendezvous

    store, rank, _ = next(rendezvous("env://"))
    key = f"twins_dense/{name}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    if rank == 0:
        store.set(key, value)
    return store.get(key).decode()
