"""Samplers whose order and seeds depend only on the position in a run, so that a resumed run continues exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import chain, count, islice, repeat
from typing import Any

import torch
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from ...seeds import derived_seed, seeded


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """MMEngine's DefaultSampler, yielding (index, seed) pairs instead of indices.

    Each seed depends only on the seed of the run, the epoch and the index. Augmentation is therefore independent of the
    data loader worker and the rank that perform it, and the same after resuming.

    Attributes:
        start: Number of indices of this process to skip.
    """

    start = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        indices = islice(super().__iter__(), self.start, None)
        return ((index, derived_seed(self.seed, self.epoch, index)) for index in indices)


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """An endless stream of (index, seed) pairs that is dealt out to the ranks in turn.

    Order and seeds depend only on the seed of the run and the position in the stream, so it can start anywhere.

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
    """Base class of data sets whose items can be looked up by index or by an (index, seed) pair.

    If a seed is given, the augmentation of the item depends only on that seed.
    """

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        index = range(len(self))[
            index
        ]  # turn negative indices positive, because MMEngine does not find the first item by -len
        with contextlib.nullcontext() if seed is None else seeded(seed):
            return super().__getitem__(index)


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """MMEngine's IterBasedTrainLoop, but with a `SeededInfiniteSampler` it resumes without reading old batches again.

    MMEngine's own loop loads and augments every batch before the iteration at which it resumes.
    """

    def run(self) -> None:
        """Train to the last iteration."""
        sampler = self.dataloader.sampler
        if self.iter and isinstance(sampler, SeededInfiniteSampler):
            sampler.start = self.iter * self.dataloader.batch_size * sampler.world_size
            # The base class requests the batches of all earlier iterations and discards them; give it `None`s.
            self.dataloader_iterator = chain(repeat(None, self.iter), iter(self.dataloader))
        return super().run()


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """MMEngine's EpochBasedTrainLoop, but it can resume in the middle of an epoch.

    With a `SeededSampler`, the batches before that are not read again.

    Attributes:
        first_batch: Number of batches of the next epoch that were done before.
    """

    first_batch = 0

    def run_epoch(self) -> None:
        """Train for one epoch, or for the rest of it."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        first, self.first_batch = self.first_batch, 0
        sampler, batches = self.dataloader.sampler, self.dataloader
        if isinstance(sampler, SeededSampler):
            sampler.start = first * self.dataloader.batch_size
        else:
            batches = islice(batches, first, None)
        for index, batch in enumerate(batches, first):
            self.run_iter(index, batch)
        if isinstance(sampler, SeededSampler):
            sampler.start = 0
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
