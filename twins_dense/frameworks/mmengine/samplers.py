"""Samplers whose order and seeds depend only on positions in a run, so that a resumed run continues exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain, count, repeat
from typing import Any

import torch
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, LOOPS
from mmengine.runner import IterBasedTrainLoop

from ...seeds import derived_seed, seeded


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """MMEngine's DefaultSampler, yielding (index, seed) pairs instead of indices.

    The seed depends only on the seed of the run, the epoch and the index. Augmentation is therefore the same whichever
    data loader worker or rank draws it, and the same after a resume.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((index, derived_seed(self.seed, self.epoch, index)) for index in super().__iter__())


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """An endless stream of (index, seed) pairs, which the ranks take in turn.

    Order and seeds depend only on the seed of the run and the position in the stream, so the stream can start anywhere.

    Attributes:
        start: Position in the stream at which to start.
    """

    start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        shuffled_for, order = -1, list(range(self.size))
        for position in count(self.start + self.rank, self.world_size):
            epoch, place = divmod(position, self.size)
            if self.shuffle and epoch != shuffled_for:
                generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
                shuffled_for, order = epoch, torch.randperm(self.size, generator=generator).tolist()
            yield order[place], derived_seed(self.seed, position)


class SeededItems(BaseDataset):
    """A base class of data sets for these samplers: an item is looked up by index, or by (index, seed).

    With a seed, the augmentation of the item depends on that seed alone.
    """

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[index]  # MMEngine cannot look up the first item by its negative index
        with contextlib.nullcontext() if seed is None else seeded(seed):
            return super().__getitem__(index)


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """MMEngine's IterBasedTrainLoop that, with a `SeededInfiniteSampler`, resumes without reading old batches again.

    MMEngine's own loop loads and augments every batch up to the iteration at which it resumes.
    """

    def run(self) -> None:
        """Train to the last iteration."""
        sampler = self.dataloader.sampler
        if self.iter and isinstance(sampler, SeededInfiniteSampler):
            sampler.start = self.iter * self.dataloader.batch_size * sampler.world_size
            # The base class asks for the batches of all iterations so far and throws them away.
            self.dataloader_iterator = chain(repeat(None, self.iter), iter(self.dataloader))
        return super().run()
