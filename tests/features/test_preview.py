"""Previews show the photo and the principal components of each level."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_fixtures import CROP, run, settings

import twins_dense as td
from twins_dense.data.image_lists import ImageList
from twins_dense.features.prepare import Protocol, decode

pytest.importorskip("zarr", minversion="3.1", reason="zarr 3 needs Python 3.11")
from twins_dense.features.preview import draw_preview, principal_colours


def test_colours() -> None:
    """Up to sign and stretch, the colours equal the components of numpy's SVD: their correlation is 1."""
    cells = torch.randn(6, 9, 7) * torch.tensor([5.0, 3, 2, 1, 1, 1])[:, None, None]
    colours = principal_colours(cells).numpy().reshape(3, -1)
    rows = cells.numpy().reshape(6, -1).T
    _, _, components = np.linalg.svd(rows - rows.mean(0))
    inside = ((colours > 0) & (colours < 1)).all(0)
    for colour, component in zip(colours, components[:3], strict=True):
        turned = component * np.sign(component[np.abs(component).argmax()])
        assert np.corrcoef(colour[inside], (rows @ turned)[inside])[0, 1] == pytest.approx(1, abs=1e-5)
    assert colours.min() == 0 and colours.max() == 1


@pytest.mark.parametrize("protocol", [CROP, Protocol("native", None)], ids=lambda protocol: protocol.name)
def test_pictures(net: td.TwinsBackbone, images: ImageList, tmp_path: Path, protocol: Protocol) -> None:
    run(net, images, tmp_path, settings(protocol))
    features = td.open_features(tmp_path)
    drawn = draw_preview(features, 1)
    expected = decode(images.paths[1], protocol).pixels
    assert expected is not None
    height, width = expected.shape[:2]
    assert drawn.shape == (height, 5 * width, 3)
    np.testing.assert_array_equal(drawn[:, :width], expected)
    assert (drawn[:4, width : width + 4] == drawn[0, width]).all()  # a cell of c2
