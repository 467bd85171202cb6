"""With the same weights, timm's independent implementation of Twins gives the same logits and maps."""

from __future__ import annotations

import pytest
import torch
from contracts import VARIANTS, randomise, shapes_of, state_dict_shapes, without_initialisation
from torch import nn

import twins_dense as td

timm = pytest.importorskip("timm", reason="timm is a test dependency: pip install 'twins-dense[test]'")


def timm_model(variant: str) -> nn.Module:
    return without_initialisation(lambda: timm.create_model(f"twins_{variant}")).eval()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_ours_in_timm(variant: str) -> None:
    """The logits at timm's published size of 224 agree, and our state dict loads strictly into timm's model."""
    ours = randomise(without_initialisation(lambda: td.create_classifier(variant)), seed=11).eval()
    theirs = timm_model(variant)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.randn(1, 3, 224, 224)
    assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_timm_in_ours(variant: str) -> None:
    """The maps agree at sizes where windows of 7 need padding: on both axes, and on one axis from c2 to c5."""
    theirs = randomise(timm_model(variant), seed=13)
    ours = without_initialisation(lambda: td.create_backbone(variant, level_norm=False)).eval()
    report = td.load_weights(ours, theirs.state_dict())
    assert report.variant == variant and not report.initialised
    assert report.dropped == ("head.bias", "head.weight", "norm.bias", "norm.weight")
    for height, width in ((128, 160), (96, 224)):
        images = torch.randn(1, 3, height, width)
        expected = theirs.forward_intermediates(images, intermediates_only=True)
        levels = ours(images)
        assert len(levels) == len(expected) == 4
        for level, intermediate in zip(levels, expected, strict=True):
            assert_close(level, intermediate)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_list_of_names_is_current(variant: str) -> None:
    """`state_dict_keys.json.gz` agrees with the installed timm."""
    with torch.device("meta"):
        assert shapes_of(timm.create_model(f"twins_{variant}")) == state_dict_shapes("timm", variant)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
