"""The processes that torchrun starts: which one this is, who prints, joining and leaving the group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

# One process may finish long before another.
_PATIENCE = timedelta(days=7)


def is_first_process() -> bool:
    """Return whether this process is the one that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def joined_processes() -> Iterator[tuple[int, int]]:
    """Join the group of processes if torchrun has started several, and yield the rank and the number of processes."""
    import torch.distributed as dist  # here, because the command line needs this module before it needs torch

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)  # only small things are exchanged, on the CPU
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return once every process of the group has called this."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
