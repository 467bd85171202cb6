"""Outputs of the official code, number by number; tests/golden/README.md says how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import GOLDEN, VARIANTS, formula_image, formula_weight, state_dict_shapes, without_initialisation
from torch import Tensor

import twins_dense as td

FILES = sorted(GOLDEN.glob("*.npz"))
CLASSIFIER_FILES = [path for path in FILES if path.stem.startswith("cls-")]
DENSE_FILES = [path for path in FILES if path not in CLASSIFIER_FILES]
WINDOW_PADDING = {"det": "zeros", "seg": "upstream_mask"}
# Largest allowed difference, in units of the largest magnitude in the file.
TOLERANCE = 1e-4


def test_all_files_are_here() -> None:
    assert len(FILES) == 18
    assert {path.stem.split("-")[1] for path in CLASSIFIER_FILES} == set(VARIANTS)
    assert len(DENSE_FILES) == 12


def formula_state_dict(kind: str, variant: str) -> dict[str, Tensor]:
    shapes = state_dict_shapes(f"official_{kind}", variant)
    with ThreadPoolExecutor(2) as pool:  # RandomState releases the interpreter lock
        return dict(zip(shapes, pool.map(formula_weight, shapes, shapes.values()), strict=True))


@pytest.fixture(scope="module")
def dense_weights() -> Iterator[dict[str, dict[str, Tensor]]]:
    """By variant. Detection and segmentation models have the same entries, so the formula gives the same values."""
    weights = {}
    for variant in ("pcpvt_small", "svt_small"):
        assert state_dict_shapes("official_det", variant) == state_dict_shapes("official_seg", variant)
        weights[variant] = formula_state_dict("det", variant)
    yield weights
    weights.clear()


def assert_close(found: dict[str, np.ndarray], path: Path) -> None:
    with np.load(path) as golden:
        assert set(found) == set(golden)
        scale = max(np.abs(golden[key]).max() for key in golden if not key.endswith("_shape"))
        for key in golden:
            assert found[key].shape == golden[key].shape, key
            if key.endswith("_shape"):
                assert found[key].tolist() == golden[key].tolist(), key
            else:
                assert np.abs(found[key] - golden[key]).max() <= TOLERANCE * scale, key


def golden_arrays(names: Sequence[str], levels: Sequence[Tensor]) -> dict[str, np.ndarray]:
    """What the files hold of a pyramid of one image."""
    found = {}
    for name, level in zip(names, levels, strict=True):
        x = level[0].numpy()
        every_cell = name in ("c4", "c5") and x.shape[1] * x.shape[2] < 2000
        found[f"{name}_shape"] = np.array(x.shape)
        found[f"{name}_mean"] = x.mean((1, 2))
        found[f"{name}_sample"] = x[::3] if every_cell else x[::7, ::3, ::3]
    return found


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
    """Measured in the official code: only where both axes are padded is its mask on."""

    def c2(kind: str, size: str) -> np.ndarray:
        with np.load(GOLDEN / f"{kind}-svt_small-{size}.npz") as golden:
            return golden["c2_sample"]

    assert np.abs(c2("seg", "128x160") - c2("det", "128x160")).max() > 0.01
    np.testing.assert_allclose(c2("seg", "160x224"), c2("det", "160x224"), atol=1e-4)
