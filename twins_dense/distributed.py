"""Process groups for commands that torchrun starts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist

# Long, because one process may finish long before another.
_TIMEOUT = timedelta(days=7)


@contextlib.contextmanager
def joined_processes() -> Iterator[tuple[int, int]]:
    """Yield the rank of this process and the number of processes, joined in a group if torchrun started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo", timeout=_TIMEOUT)  # on the CPU, because processes exchange only small values
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Wait until every process of the group has called this function."""
    if dist.is_initialized():
        dist.barrier()
