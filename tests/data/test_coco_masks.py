"""Segmentations in COCO format: polygons and run-length encodings become masks, and malformed ones are refused."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_utils

from twins_dense.data.coco_masks import decode_segmentation, run_lengths
from twins_dense.errors import TwinsError

WIDTH, HEIGHT = 47, 31


def encode_slowly(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask down its columns, zeros first."""
    counts, current, run = [], 0, 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row, column] != current:
                counts.append(run)
                current, run = 1 - current, 0
            run += 1
    return [*counts, run]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    height = draw(st.integers(1, 23))
    width = draw(st.integers(1, 23).filter(lambda size: size != height))
    bits = draw(st.lists(st.integers(0, 1), min_size=height * width, max_size=height * width))
    return np.array(bits, np.uint8).reshape(height, width)


class TestDecodeSegmentation:
    @given(mask=masks())
    @settings(max_examples=60, deadline=None)
    def test_run_lengths(self, mask: np.ndarray) -> None:
        height, width = mask.shape
        segmentation = {"counts": encode_slowly(mask), "size": [height, width]}
        before = copy.deepcopy(segmentation)
        decoded = decode_segmentation(segmentation, height, width)
        assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, mask)
        assert segmentation == before

    @given(mask=masks())
    @settings(max_examples=60, deadline=None)
    def test_compressed(self, mask: np.ndarray) -> None:
        height, width = mask.shape
        counts = mask_utils.encode(np.asfortranarray(mask))["counts"]
        assert run_lengths(counts) == encode_slowly(mask)
        for form in (counts, counts.decode("ascii")):
            decoded = decode_segmentation({"counts": form, "size": [height, width]}, height, width)
            np.testing.assert_array_equal(decoded, mask)

    def test_long_runs_compressed(self) -> None:
        mask = np.zeros((301, 401), np.uint8)
        mask[:, 150:353] = 1
        mask[7, 200] = 0
        counts = mask_utils.encode(np.asfortranarray(mask))["counts"]
        assert run_lengths(counts) == encode_slowly(mask)

    def test_the_three_forms_agree(self) -> None:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[7:20, 5:16] = 1
        mask[22:29, 30:41] = 1
        polygons = [[5, 7, 16, 7, 16, 20, 5, 20], [30, 22, 41, 22, 41, 29, 30, 29]]
        counts = encode_slowly(mask)
        compressed = mask_utils.frPyObjects({"counts": counts, "size": [HEIGHT, WIDTH]}, HEIGHT, WIDTH)["counts"]
        forms: list[Any] = [polygons]
        forms += [{"counts": form, "size": [HEIGHT, WIDTH]} for form in (counts, compressed, compressed.decode())]
        for segmentation in forms:
            np.testing.assert_array_equal(decode_segmentation(segmentation, HEIGHT, WIDTH), mask)

    def test_overlapping_polygons_stay_binary(self) -> None:
        polygon = [5, 7, 16, 7, 16, 20, 5, 20]
        assert decode_segmentation([polygon, polygon], HEIGHT, WIDTH).max() == 1

    @pytest.mark.parametrize("segmentation", [[], {}, None, [[1, 2, 3, 4]], {"counts": [4], "size": [2, 2]}])
    def test_malformed(self, segmentation: Any) -> None:
        with pytest.raises(TwinsError, match=r"^segmentation .*"):
            decode_segmentation(segmentation, HEIGHT, WIDTH)

    def test_only_polygons_need_pycocotools(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        assert decode_segmentation({"counts": [2, 2], "size": [2, 2]}, 2, 2).tolist() == [[0, 1], [0, 1]]
        with pytest.raises(TwinsError, match=r"pycocotools is not installed: pip install 'twins-dense\[detection\]'"):
            decode_segmentation([[0, 0, 1, 0, 1, 1]], 2, 2)
