"""Training by iterations, which a resumed run goes on with at once; registered by importing this module."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, repeat

import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.registry import DATA_SAMPLERS, LOOPS
from mmengine.runner import IterBasedTrainLoop

from ...seeds import derived_seed


@DATA_SAMPLERS.register_module()
class SeededSampler(DefaultSampler):
    """MMEngine's DefaultSampler, giving (index, seed) pairs.

    The seed depends on the run's seed, the epoch and the index alone: what augmentation draws is the same whichever
    worker or rank draws it, and the same after a resume.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((index, derived_seed(self.seed, self.epoch, index)) for index in super().__iter__())


@DATA_SAMPLERS.register_module()
class SeededInfiniteSampler(InfiniteSampler):
    """An endless stream of (index, seed) pairs, which the ranks share out in turn.

    Order and seeds depend on the run's seed and the position in the stream alone, so the stream can start anywhere.
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


@LOOPS.register_module()
class ResumableIterLoop(IterBasedTrainLoop):
    """MMEngine's IterBasedTrainLoop, which with a `SeededInfiniteSampler` doesn't read again what was trained on.

    MMEngine's own loads and augments every batch up to the iteration that it resumes at.
    """

    def run(self) -> None:
        """Train to the last iteration."""
        sampler = self.dataloader.sampler
        if self.iter and isinstance(sampler, SeededInfiniteSampler):
            sampler.start = self.iter * self.dataloader.batch_size * sampler.world_size
            # The base class asks for the batches of all iterations so far, and throws them away.
            self.dataloader_iterator = chain(repeat(None, self.iter), iter(self.dataloader))
        return super().run()
