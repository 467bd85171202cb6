"""The replacement for mmcv's compiled operators: known answers, gradients, and the import of mmseg with it."""

from __future__ import annotations

import math

import pytest
import torch
from detection_fixtures import run_python
from torch import Tensor

from twins_dense.frameworks.mmengine import mmcv_ops


class TestPointSample:
    MAP = torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 11.0]])[None, None]  # 2x3

    @pytest.mark.parametrize(
        ("point", "expected"),
        [
            ((1 / 6, 1 / 4), 1.0),  # the middle of the first cell
            ((5 / 6, 3 / 4), 11.0),  # the middle of the last cell; x is the column
            ((1 / 2, 1 / 2), 4.5),  # between 2 and 7
            ((1 / 3, 1 / 4), 1.5),  # between 1 and 2
            ((0.0, 0.0), 0.25),  # a corner: a quarter of the first cell, because cells outside are zero
        ],
    )
    def test_edges_are_0_and_1(self, point: tuple[float, float], expected: float) -> None:
        found = mmcv_ops.point_sample(self.MAP, torch.tensor([[point]]))
        assert found.shape == (1, 1, 1) and found.item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize(("point", "expected"), [((0.0, 0.0), 1.0), ((1.0, 0.0), 3.0), ((0.5, 0.5), 4.5)])
    def test_middles_are_0_and_1(self, point: tuple[float, float], expected: float) -> None:
        found = mmcv_ops.point_sample(self.MAP, torch.tensor([[point]]), align_corners=True)
        assert found.item() == pytest.approx(expected, abs=1e-6)

    def test_shapes_and_mode(self) -> None:
        maps = torch.randn(2, 5, 7, 11)
        assert mmcv_ops.point_sample(maps, torch.rand(2, 13, 2)).shape == (2, 5, 13)
        grid = torch.rand(2, 13, 3, 2)
        samples = mmcv_ops.point_sample(maps, grid)
        assert samples.shape == (2, 5, 13, 3)
        torch.testing.assert_close(samples.flatten(2), mmcv_ops.point_sample(maps, grid.flatten(1, 2)))
        nearest = mmcv_ops.point_sample(self.MAP, torch.tensor([[[0.4, 0.2]]]), mode="nearest")
        assert nearest.item() == 2.0


class TestSigmoidFocalLoss:
    @staticmethod
    def by_hand(logits: Tensor, target: list[int], gamma: float, alpha: float) -> list[list[float]]:
        rows = []
        for row, own in zip(logits.tolist(), target, strict=True):
            p = [1 / (1 + math.exp(-value)) for value in row]
            rows.append(
                [
                    -alpha * (1 - q) ** gamma * math.log(q) if c == own else -(1 - alpha) * q**gamma * math.log(1 - q)
                    for c, q in enumerate(p)
                ]
            )
        return rows

    @pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (0.0, 0.5), (1.5, 0.7)])
    def test_known_answers(self, gamma: float, alpha: float) -> None:
        logits = torch.tensor([[0.3, -1.2, 2.0], [0.0, 4.0, -0.5]], dtype=torch.float64)
        target = [2, 3]  # the second row belongs to none of the three classes
        expected = torch.tensor(self.by_hand(logits, target, gamma, alpha), dtype=torch.float64)
        labels = torch.tensor(target)
        found = mmcv_ops.sigmoid_focal_loss(logits, labels, gamma, alpha, None, "none")
        torch.testing.assert_close(found, expected)
        assert mmcv_ops.sigmoid_focal_loss(logits, labels, gamma, alpha, None, "sum").item() == pytest.approx(
            expected.sum().item()
        )
        # mmcv's mean divides by the number of rows, not of entries.
        assert mmcv_ops.sigmoid_focal_loss(logits, labels, gamma, alpha).item() == pytest.approx(
            expected.sum().item() / 2
        )

    def test_gradient(self) -> None:
        logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        target = torch.tensor([0, 2, 3, 1])
        assert torch.autograd.gradcheck(
            lambda x: mmcv_ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "none"), logits
        )
        # At logit 0 and gamma 0, it is alpha * (p - 1) for the target class and (1 - alpha) * p for the others.
        zero = torch.zeros(1, 2, requires_grad=True)
        mmcv_ops.sigmoid_focal_loss(zero, torch.tensor([1]), 0.0, 0.25, None, "sum").backward()
        assert zero.grad is not None
        assert zero.grad[0].tolist() == pytest.approx([0.75 * 0.5, -0.25 * 0.5])

    def test_extreme_logits_stay_finite(self) -> None:
        logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
        mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([1])).backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_other_operators_are_missing_by_name() -> None:
    with pytest.raises(ModuleNotFoundError, match="PSAMask"):
        mmcv_ops.PSAMask  # noqa: B018
    assert not hasattr(mmcv_ops, "__path__")


IMPORTS = """
import warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
{enable}
import sys
import mmcv.ops
from mmseg.registry import DATASETS, MODELS
assert MODELS.get("twins_dense.TwinsBackbone") is not None
assert DATASETS.get("twins_dense.ADE20KDataset") is not None
assert MODELS.get("UPerHead") is not None and MODELS.get("SVT") is not None
print(mmcv.ops.__name__)
"""


@pytest.mark.parametrize(
    "enable",
    [
        "from twins_dense.frameworks.mmengine import enable_mmseg; enable_mmseg(); enable_mmseg()",
        "import twins_dense.frameworks.mmengine.segmentors",
    ],
)
def test_mmseg_imports(enable: str) -> None:
    result = run_python("-c", IMPORTS.format(enable=enable))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-1] == "twins_dense.frameworks.mmengine.mmcv_ops"


def test_the_real_operators_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util
    import sys

    real = object()
    monkeypatch.setitem(sys.modules, "mmcv.ops", real)  # type: ignore[arg-type]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: real if name == "mmcv._ext" else find_spec(name))
    mmcv_ops.stand_in()
    assert sys.modules["mmcv.ops"] is real
