"""Samplers whose order and seeds depend only on positions."""

from __future__ import annotations

from twins_dense.frameworks.mmengine.samplers import SeededSampler


class TestSeededSampler:
    @staticmethod
    def drawn(seed: int = 0, epoch: int = 0, shuffle: bool = True, size: int = 11) -> list[tuple[int, int]]:
        sampler = SeededSampler(range(size), shuffle=shuffle, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    def test_repeatable(self) -> None:
        assert self.drawn() == self.drawn()
        assert sorted(index for index, _ in self.drawn()) == list(range(11))

    def test_every_index_epoch_and_run_has_seeds_of_its_own(self) -> None:
        draws = [self.drawn(seed, epoch) for seed in range(3) for epoch in range(3)]
        seeds = {seed for draw in draws for _, seed in draw}
        assert len(seeds) == 9 * 11
        assert all(0 <= seed < 2**63 for seed in seeds)
        orders = [tuple(index for index, _ in self.drawn(epoch=epoch)) for epoch in range(4)]
        assert len(set(orders)) == 4

    def test_seeds_don_t_depend_on_the_order(self) -> None:
        assert dict(self.drawn(shuffle=True)) == dict(self.drawn(shuffle=False))
        assert [index for index, _ in self.drawn(shuffle=False)] == list(range(11))
