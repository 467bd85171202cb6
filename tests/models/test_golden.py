"""Comparison with recorded outputs of the official code, which tests/golden/README.md describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import GOLDEN, VARIANTS, formula_image, state_dict_shapes, without_initialisation
from golden_files import (
    CLASSIFIER_FILES,
    DENSE_FILES,
    FILES,
    WINDOW_PADDING,
    assert_close,
    formula_state_dict,
    golden_arrays,
)
from torch import Tensor

import twins_dense as td


def test_all_files_are_here() -> None:
    assert len(FILES) == 18
    assert {path.stem.split("-")[1] for path in CLASSIFIER_FILES} == set(VARIANTS)
    assert len(DENSE_FILES) == 12


@pytest.fixture(scope="module")
def dense_weights() -> Iterator[dict[str, dict[str, Tensor]]]:
    """State dict of a variant. Detection and segmentation models have the same entries, and so the same values."""
    weights = {}
    for variant in ("pcpvt_small", "svt_small"):
        assert state_dict_shapes("official_det", variant) == state_dict_shapes("official_seg", variant)
        weights[variant] = formula_state_dict("det", variant)
    yield weights
    weights.clear()


@pytest.mark.parametrize("path", CLASSIFIER_FILES, ids=lambda path: path.stem)
@torch.no_grad()
def test_classifier(path: Path) -> None:
    _, variant, size = path.stem.split("-")
    height, width = map(int, size.split("x"))
    net = without_initialisation(lambda: td.create_classifier(variant)).eval()
    report = td.load_weights(net, formula_state_dict("cls", variant))
    assert report.variant == variant and not report.initialised and not report.dropped
    assert_close({"logits": net(formula_image(height, width))[0].numpy()}, path)


@pytest.mark.parametrize("path", DENSE_FILES, ids=lambda path: path.stem)
@torch.no_grad()
def test_dense(path: Path, dense_weights: dict[str, dict[str, Tensor]]) -> None:
    kind, variant, size = path.stem.split("-")
    height, width = map(int, size.split("x"))
    net = without_initialisation(lambda: td.create_backbone(variant, window_padding=WINDOW_PADDING[kind])).eval()
    report = td.load_weights(net, dense_weights[variant])
    assert report.variant == variant and not report.initialised
    assert_close(golden_arrays(net.pyramid.names, net(formula_image(height, width))), path)


def test_the_files_tell_the_window_paddings_apart() -> None:
    """The official code masks the padding only if both axes are padded."""

    def c2(kind: str, size: str) -> np.ndarray:
        with np.load(GOLDEN / f"{kind}-svt_small-{size}.npz") as golden:
            return golden["c2_sample"]

    assert np.abs(c2("seg", "128x160") - c2("det", "128x160")).max() > 0.01
    np.testing.assert_allclose(c2("seg", "160x224"), c2("det", "160x224"), atol=1e-4)
