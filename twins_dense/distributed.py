"""The processes that torchrun starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

# One process may be done long before another.
_PATIENCE = timedelta(days=7)


@contextlib.contextmanager
def joined_processes() -> Iterator[tuple[int, int]]:
    """This process's rank and how many there are: in a group with the others where torchrun has started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)  # only small things are exchanged, on the CPU
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Return once every process of the group is here."""
    if dist.is_initialized():
        dist.barrier()
