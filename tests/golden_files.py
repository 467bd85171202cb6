"""The recorded outputs of the official code, and helpers to compare our outputs with them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from contracts import GOLDEN, formula_weight, state_dict_shapes
from torch import Tensor

FILES = sorted(GOLDEN.glob("*.npz"))
CLASSIFIER_FILES = [path for path in FILES if path.stem.startswith("cls-")]
DENSE_FILES = [path for path in FILES if path not in CLASSIFIER_FILES]
WINDOW_PADDING = {"det": "zeros", "seg": "upstream_mask"}
# Largest difference allowed, relative to the largest magnitude in the file.
TOLERANCE = 1e-4


def formula_state_dict(kind: str, variant: str) -> dict[str, Tensor]:
    shapes = state_dict_shapes(f"official_{kind}", variant)
    with ThreadPoolExecutor(2) as pool:  # RandomState releases the interpreter lock
        return dict(zip(shapes, pool.map(formula_weight, shapes, shapes.values()), strict=True))


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
    """Return the arrays that a file stores for the pyramid of one image."""
    found = {}
    for name, level in zip(names, levels, strict=True):
        x = level[0].numpy()
        every_cell = name in ("c4", "c5") and x.shape[1] * x.shape[2] < 2000
        found[f"{name}_shape"] = np.array(x.shape)
        found[f"{name}_mean"] = x.mean((1, 2))
        found[f"{name}_sample"] = x[::3] if every_cell else x[::7, ::3, ::3]
    return found
