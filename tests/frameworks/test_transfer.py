"""A model continues from one for other classes: everything fits, except the heads, which start afresh."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from twins_dense.errors import TwinsError
from twins_dense.frameworks.transfer import fit_transfer

HEADS = (r"head\.(weight|bias)",)


def state(num_classes: int, value: float, width: int = 5) -> dict[str, Tensor]:
    return {
        "body.weight": torch.full((width, 3), value),
        "head.weight": torch.full((num_classes, width), value),
        "head.bias": torch.full((num_classes,), value),
    }


@pytest.mark.parametrize(
    ("num_classes", "same_classes", "fresh"),
    [(2, False, True), (2, True, True), (3, False, True), (3, True, False)],
)
def test_heads(num_classes: int, same_classes: bool, fresh: bool) -> None:
    target = state(num_classes, 1.0)
    found, report = fit_transfer(state(3, 7.0), target, HEADS, source="other.pth", same_classes=same_classes)
    assert list(found) == list(target) and {name: v.shape for name, v in found.items()} == {
        name: v.shape for name, v in target.items()
    }
    assert (found["body.weight"] == 7).all()
    assert (found["head.weight"] == (1 if fresh else 7)).all() and (found["head.bias"] == (1 if fresh else 7)).all()
    assert report.fresh == (("head.weight", "head.bias") if fresh else ())
    assert set(report.loaded) | set(report.fresh) == set(target)
    assert ("head.weight, head.bias" in str(report)) == fresh and "other.pth" in str(report)


def test_what_may_not_differ() -> None:
    target = state(2, 1.0)
    for wrong, words in (
        (state(3, 7.0, width=4), "body.weight is (4, 3) but the model has (5, 3)"),
        ({**state(3, 7.0), "more": torch.zeros(1)}, "more (1,) is unexpected"),
        ({"head.weight": torch.zeros(3, 5), "head.bias": torch.zeros(3)}, "body.weight is missing"),
        ({"body.weight": torch.zeros(5, 3), "head.weight": torch.zeros(3, 5)}, "head.bias is missing"),
        ({**state(3, 7.0), "the.head.weight": torch.zeros(3, 5)}, "the.head.weight (3, 5) is unexpected"),
    ):
        with pytest.raises(TwinsError) as caught:
            fit_transfer(wrong, target, HEADS, source="other.pth", same_classes=False)
        assert "other.pth" in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)
