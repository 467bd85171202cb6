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


def from_first_process(value: str) -> str:
    """Return the value that the first of the processes started by torchrun has passed."""
    import torch.distributed as dist

    values = [value]
    with joined_processes() as (_, num_processes):
        if num_processes > 1:
            dist.broadcast_object_list(values)
    return values[0]
