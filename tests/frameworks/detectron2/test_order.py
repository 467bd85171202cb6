"""The order and the randomness of detectron2 training do not depend on processes, workers or resuming."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from d2_fixtures import MARKS, augmenting_mapper, clean_detectron2, engine, toy_files  # noqa: F401  (a fixture)
from detection_fixtures import NUM_TRAIN
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st

import twins_dense as td
from twins_dense.frameworks.detectron2.data import PositionSampler, build_train_loader, coco_dataset
from twins_dense.seeds import derived_seed

pytestmark = MARKS
Entry = dict[str, Any]


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(comm, "get_rank", lambda: rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)


def pairs_of(sampler: PositionSampler, count: int, *, rank: int = 0, world_size: int = 1) -> list[tuple[int, int]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        as_rank(monkeypatch, rank, world_size)
        return list(islice(iter(sampler), count))


class TestPositionSampler:
    @given(
        num_images=st.integers(1, 40),
        world_size=st.integers(1, 5),
        seed=st.integers(0, 2**31),
        num_wide=st.integers(0, 40),
    )
    def test_every_image_once_an_epoch_over_all_ranks(
        self, num_images: int, world_size: int, seed: int, num_wide: int
    ) -> None:
        """With batches of one image, images come in the order of positions, which can be recognised by the seeds."""
        is_wide = [index < num_wide for index in range(num_images)]
        epochs = world_size
        by_seed = {derived_seed(seed, position): position for position in range(epochs * num_images)}
        shown: dict[int, int] = {}
        for rank in range(world_size):
            sampler = PositionSampler(is_wide, 1, seed)
            for index, image_seed in pairs_of(sampler, num_images, rank=rank, world_size=world_size):
                position = by_seed[image_seed]
                assert position % world_size == rank and position not in shown
                shown[position] = index
        assert len(shown) == epochs * num_images
        for epoch in range(epochs):
            found = [shown[position] for position in range(epoch * num_images, (epoch + 1) * num_images)]
            assert sorted(found) == list(range(num_images))

    @given(
        is_wide=st.lists(st.booleans(), min_size=1, max_size=30),
        batch_size=st.integers(1, 6),
        world_size=st.integers(1, 3),
        seed=st.integers(0, 9),
    )
    def test_batches_have_one_orientation(
        self, is_wide: list[bool], batch_size: int, world_size: int, seed: int
    ) -> None:
        ranks = []
        for rank in range(world_size):
            sampler = PositionSampler(is_wide, batch_size, seed)
            pairs = pairs_of(sampler, 8 * batch_size, rank=rank, world_size=world_size)
            batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
            assert all(len({is_wide[index] for index, _ in batch}) == 1 for batch in batches)
            ranks.append({image_seed for _, image_seed in pairs})
            assert len(ranks[-1]) == len(pairs)  # no position occurs twice on a rank
        assert sum(map(len, ranks)) == len(set().union(*ranks))  # nor on two ranks

    def test_no_image_waits_longer_than_for_its_batch(self) -> None:
        """With 12 wide and 4 tall images in batches of 4, 3 epochs are 12 batches."""
        is_wide = [True] * 12 + [False] * 4
        pairs = pairs_of(PositionSampler(is_wide, 4, 0), 48)
        assert sorted(index for index, _ in pairs) == sorted([*range(16)] * 3)
        assert {image_seed for _, image_seed in pairs} == {derived_seed(0, position) for position in range(48)}

    @given(
        is_wide=st.lists(st.booleans(), min_size=1, max_size=20), batch_size=st.integers(1, 4), first=st.integers(0, 20)
    )
    def test_a_later_start_leaves_out_batches(self, is_wide: list[bool], batch_size: int, first: int) -> None:
        whole = pairs_of(PositionSampler(is_wide, batch_size, 3), (first + 5) * batch_size)
        sampler = PositionSampler(is_wide, batch_size, 3)
        sampler.first_iteration = first
        assert pairs_of(sampler, 5 * batch_size) == whole[first * batch_size :]

    def test_seeds_are_different_runs(self) -> None:
        runs = [pairs_of(PositionSampler([True] * 20, 2, seed), 20) for seed in (0, 0, 1)]
        assert runs[0] == runs[1] and runs[0] != runs[2]
        assert not {seed for _, seed in runs[0]} & {seed for _, seed in runs[2]}

    def test_epochs_have_different_orders(self) -> None:
        pairs = pairs_of(PositionSampler([True] * 20, 1, 0), 40)
        assert [index for index, _ in pairs[:20]] != [index for index, _ in pairs[20:]]


# The loader


def toy_loader(toy_data: Path, **settings: Any) -> Any:
    records = coco_dataset("toy", training=True, with_masks=True, **toy_files(toy_data, "train"))
    return build_train_loader(records, mapper=augmenting_mapper(), total_batch_size=2, **settings)


def assert_same_batches(found: Iterator[list[Entry]], expected: list[list[Entry]]) -> None:
    for batch, expected_batch in zip(islice(found, len(expected)), expected, strict=True):
        assert [entry["image_id"] for entry in batch] == [entry["image_id"] for entry in expected_batch]
        for entry, other in zip(batch, expected_batch, strict=True):
            assert torch.equal(entry["image"], other["image"])
            instances, others = entry["instances"], other["instances"]
            assert instances.image_size == others.image_size
            assert torch.equal(instances.gt_boxes.tensor, others.gt_boxes.tensor)
            assert torch.equal(instances.gt_classes, others.gt_classes)
            for polygons, other_polygons in zip(instances.gt_masks, others.gt_masks, strict=True):
                assert all(map(np.array_equal, polygons, other_polygons))


class TestLoader:
    @pytest.fixture
    def expected(self, toy_data: Path) -> list[list[Entry]]:
        return list(islice(toy_loader(toy_data, num_workers=0), 9))

    def test_images_and_augmentation_are_random(self, expected: list[list[Entry]]) -> None:
        """Otherwise, finding them equal in other tests would prove little."""
        epochs = [[entry for batch in expected[start : start + 4] for entry in batch] for start in (0, 4)]
        orders = [[entry["image_id"] for entry in epoch] for epoch in epochs]
        assert sorted(orders[0]) == sorted(orders[1]) == list(range(1, NUM_TRAIN + 1)) and orders[0] != orders[1]
        first, second = ({entry["image_id"]: entry["image"] for entry in epoch} for epoch in epochs)
        assert sum(not torch.equal(first[i], second[i]) for i in first) >= 6

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # fork; Python 3.12
    @pytest.mark.parametrize("num_workers", [1, 2])
    def test_workers_change_nothing(self, toy_data: Path, expected: list[list[Entry]], num_workers: int) -> None:
        assert_same_batches(iter(toy_loader(toy_data, num_workers=num_workers)), expected)

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_later_start(self, toy_data: Path, expected: list[list[Entry]], num_workers: int) -> None:
        loader = toy_loader(toy_data, num_workers=num_workers)
        loader.dataset.sampler.first_iteration = 3
        assert_same_batches(iter(loader), expected[3:])

    def test_the_surroundings_have_no_part(self, toy_data: Path, expected: list[list[Entry]]) -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        assert_same_batches(iter(toy_loader(toy_data)), expected)

    def test_the_random_numbers_of_the_model_are_left_alone(self, toy_data: Path) -> None:
        """Without workers, images are prepared between the steps of the model."""
        batches = iter(toy_loader(toy_data))
        torch.manual_seed(5)
        state = torch.get_rng_state()
        next(batches)
        assert torch.equal(torch.get_rng_state(), state)

    def test_ranks_share_the_batch(
        self, toy_data: Path, expected: list[list[Entry]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two processes with one image each use the same images as one process with batches of two."""
        by_rank = []
        for rank in range(2):
            as_rank(monkeypatch, rank, 2)
            monkeypatch.setattr("detectron2.data.build.get_world_size", lambda: 2)
            by_rank.append(list(islice(toy_loader(toy_data), 9)))
        assert_same_batches(([*first, *second] for first, second in zip(*by_rank, strict=True)), expected)

    @pytest.mark.parametrize(("batch_size", "world_size"), [(3, 2), (0, 1), (-2, 1), (1, 2)])
    def test_batch_sizes_that_do_not_fit(
        self, toy_data: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, world_size: int
    ) -> None:
        records = coco_dataset("toy", training=True, **toy_files(toy_data, "train"))
        as_rank(monkeypatch, 0, world_size)
        with pytest.raises(
            td.TwinsError,
            match=rf"total_batch_size={batch_size} .* a multiple of {world_size}, the number of processes$",
        ):
            build_train_loader(records, mapper=augmenting_mapper(), total_batch_size=batch_size)
