"""Windows: where tokens are after partitioning, and that merging undoes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twins_dense.models.windows import merge_windows, partition_windows, window_key_mask

CPU = torch.device("cpu")


@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    channels=st.integers(1, 3),
    window_size=st.integers(1, 7),
)
def test_merging_undoes_partitioning(batch: int, height: int, width: int, channels: int, window_size: int) -> None:
    x = torch.arange(batch * height * width * channels).view(batch, height, width, channels)
    windows = partition_windows(x, window_size)
    num_windows = -(-height // window_size) * -(-width // window_size)
    assert windows.shape == (batch * num_windows, window_size**2, channels)
    assert torch.equal(merge_windows(windows, window_size, (height, width)), x)


@pytest.mark.parametrize(
    ("height", "width"), [(6, 9), (5, 9), (6, 7), (5, 7), (2, 11)], ids=["exact", "rows", "columns", "both", "small"]
)
def test_windows_hold_the_right_cells(height: int, width: int) -> None:
    """Windows are compared with slices, with different sizes for batch, height, width and channels."""
    x = torch.arange(2 * height * width * 5).view(2, height, width, 5) + 1
    windows = iter(partition_windows(x, 3).view(-1, 3, 3, 5))
    for image in x:
        for top in range(0, height, 3):
            for left in range(0, width, 3):
                window = next(windows)
                cells = image[top : top + 3, left : left + 3]
                rows, columns = cells.shape[:2]
                assert torch.equal(window[:rows, :columns], cells)
                assert not window[rows:].count_nonzero() and not window[:, columns:].count_nonzero()
    assert next(windows, None) is None


def test_known_windows() -> None:
    x = torch.tensor([[1, 2, 3], [4, 5, 6]])[None, :, :, None]
    assert partition_windows(x, 2)[..., 0].tolist() == [[1, 2, 4, 5], [3, 0, 6, 0]]


@given(height=st.integers(1, 23), width=st.integers(1, 23), window_size=st.integers(1, 7))
def test_mask_counts(height: int, width: int, window_size: int) -> None:
    mask = window_key_mask((height, width), window_size, CPU)
    if height % window_size == 0 and width % window_size == 0:
        assert mask is None
        return
    assert mask is not None and mask.dtype == torch.bool
    rows, columns = -(-height // window_size), -(-width // window_size)
    assert mask.shape == (rows * columns, 1, 1, window_size**2)
    assert mask.sum() == height * width
    assert mask.any(-1).all()
    # The last window holds the corner that is left over.
    corner = ((height - 1) % window_size + 1) * ((width - 1) % window_size + 1)
    assert mask[-1].sum() == corner


def test_known_mask() -> None:
    mask = window_key_mask((2, 3), 2, CPU)
    assert mask is not None
    assert mask[:, 0, 0].tolist() == [[True, True, True, True], [True, False, True, False]]


@pytest.mark.parametrize("size", [(6, 9), (5, 7)])
def test_arguments_are_left_alone(size: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 5)
    copy = x.clone()
    windows = partition_windows(x, 3)
    windows_copy = windows.clone()
    merge_windows(windows, 3, size)
    assert torch.equal(x, copy) and torch.equal(windows, windows_copy)
